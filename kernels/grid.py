"""Grid expressions of builds, `cdiv(N, BLOCK_N)`, worked out without running code from a file.

A build says its grid in the names of its arguments and constants, so that whoever launches the cubin by hand (TensorRT,
a C program) can say it in his own terms. There are + - *, // and the functions cdiv, min and max; nothing else.
`work_out` does it with whatever numbers the launcher has, such as TensorRT's symbols for sizes not known yet.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from soloist.kernels.errors import DataError

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}


def grid_size(expressions: Sequence[str], values: Mapping[str, int]) -> tuple[int, ...]:
    """Programs along each axis. Raises DataError."""
    return tuple(work_out(expression, values, int, _FUNCTIONS) for expression in expressions)


def work_out(
    expression: str,
    values: Mapping[str, Any],
    number: Callable[[Any], Any],
    functions: Mapping[str, Callable[..., Any]],
) -> Any:
    """An expression in the launcher's numbers.

    Args:
        values: sizes and constants by name.
        number: makes a literal or a value one of the launcher's numbers, which know + - * and //.
        functions: cdiv, min and max of them.

    Raises:
        DataError: anything else in the expression.
    """

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(literal)):
                return number(literal)
            case ast.Name(id=name) if name in values:
                return number(values[name])
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in functions:
                return functions[name](*(value(argument) for argument in arguments))
        raise DataError(f"grid '{expression}': {ast.unparse(node)} is not known here")

    return value(_parse(expression))


def names_in(expression: str) -> set[str]:
    """Arguments and constants that an expression speaks of. Raises DataError."""
    named = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    return named - set(_FUNCTIONS)


def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise DataError(f"grid '{expression}': not an expression") from error
