"""Grid expressions of builds, `cdiv(N, BLOCK_N)`, worked out without running code from a file.

A build says its grid in the names of its arguments and constants, so that whoever launches the cubin by hand (TensorRT,
a C program) can say it in his own terms. There are + - *, // and the functions cdiv, min and max; nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

from soloist.kernels.errors import DataError

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"cdiv": lambda a, b: -(-a // b), "min": min, "max": max}


def grid_size(expressions: Sequence[str], values: Mapping[str, int]) -> tuple[int, ...]:
    """Programs along each axis. Raises DataError."""
    return tuple(_value(_parse(expression), values, expression) for expression in expressions)


def names_in(expression: str) -> set[str]:
    """Arguments and constants that an expression speaks of. Raises DataError."""
    named = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    return named - set(_FUNCTIONS)


def _parse(expression: str) -> ast.expr:
    try:
        return ast.parse(expression, mode="eval").body
    except SyntaxError as error:
        raise DataError(f"grid '{expression}': not an expression") from error


def _value(node: ast.expr, values: Mapping[str, int], whole: str) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in values:
            return int(values[name])
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values, whole), _value(right, values, whole))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, values, whole) for argument in arguments))
    raise DataError(f"grid '{whole}': {ast.unparse(node)} is not known here")
