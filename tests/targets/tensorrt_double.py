"""Stands for `tensorrt` and `tensorrt.plugin` where they are not, as far as a plugin meets them before its kernel runs.

Written after the behavior of TensorRT 10.13 and 11.4: what a registered function must look like, which stage calls it
with what, and what must come back. Sizes are symbols that can be worked out later, so that a grid is seen to be an
expression. `Stages` plays the builder.
"""

from __future__ import annotations

import inspect
import operator
import typing
from enum import Enum
from types import ModuleType, SimpleNamespace

import numpy as np

DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT32", "INT8", "UINT8"])
LINEAR = "LINEAR"


class SymInt32:
    """An integer, a name with a size known later, or an operation on two of them. None is a fake: shapes not asked."""

    def __init__(self, value=None):
        self.value = value.value if isinstance(value, SymInt32) else value

    def _with(self, op, other):
        assert isinstance(other, int | SymInt32), f"{other!r} with a symbol"
        return ShapeExpr(None if self.value is None else (op, self.value, ShapeExpr(other).value))

    def __add__(self, other):
        return self._with(operator.add, other)

    def __sub__(self, other):
        return self._with(operator.sub, other)

    def __mul__(self, other):
        return self._with(operator.mul, other)

    def __floordiv__(self, other):
        return self._with(operator.floordiv, other)

    def at(self, sizes):
        """The integer, once the sizes are known."""

        def work_out(value):
            if isinstance(value, tuple):
                return value[0](*map(work_out, value[1:]))
            return value if isinstance(value, int) else sizes[value]

        return work_out(self.value)


class ShapeExpr(SymInt32):
    """The size of a dimension."""


class SymIntExprs:
    """Scalars of a launch: SymInt32 each, nothing wider."""

    def __init__(self, length):
        self.parts = [None] * length

    def __setitem__(self, place, value):
        self.parts[place] = value

    def __iter__(self):
        return iter(self.parts)


class ShapeExprs(list):
    """The sizes of a tensor."""

    def __setitem__(self, place, value):
        assert isinstance(value, int | ShapeExpr), f"{value!r} is no size"
        super().__setitem__(place, value)


class TensorDesc:
    def __init__(self, shape_expr, dtype, shape=None):
        self.shape_expr, self.dtype, self._shape = ShapeExprs(shape_expr), dtype, shape

    def like(self):
        return TensorDesc(self.shape_expr, self.dtype, self._shape)

    @property
    def ndim(self):
        return len(self.shape_expr)

    @property
    def has_shape(self):
        return self._shape is not None

    @property
    def shape(self):
        if self._shape is None:
            raise ValueError("TensorDesc has no shape information available at this stage")
        return self._shape


class Tensor:
    """What the Python implementation gets; a CPU array stands for the device's."""

    def __init__(self, array, dtype):
        self.array, self.dtype, self.shape, self.data_ptr = array, dtype, array.shape, 0


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self):
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name, value):
        assert name in self.NAMES, f"no launch parameter {name}"
        self.__dict__[name] = SymInt32(value)


class AutoTuneCombination:
    def __init__(self, io_types, layouts=LINEAR, tactics=None):
        names = {"FP32": "FLOAT", "FP16": "HALF"}
        self.types = [DataType[names.get(part.strip(), part.strip())] for part in io_types.split(",")]
        assert layouts == LINEAR
        assert tactics is None or all(number > 0 for number in tactics), "tactics are positive"
        self.tactics = tactics


def _both(op):
    def function(first, second):
        if isinstance(first, int) and isinstance(second, int):
            raise ValueError("Both arguments cannot be 'int's")
        return ShapeExpr(first)._with(op, second)

    return function


class Registry:
    """The decorators, and the rules they hold functions to."""

    def __init__(self):
        self.plugins, self.op = {}, SimpleNamespace()

    def register(self, plugin_id):
        namespace, name = plugin_id.split("::")

        def decorate(function):
            signature = inspect.signature(function)
            tensors, attributes = [], {}
            for argument, parameter in signature.parameters.items():
                assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
                assert parameter.default is parameter.empty
                if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, TensorDesc):
                    assert not attributes, "tensors come before attributes"
                    tensors.append(argument)
                else:
                    self._attribute(argument, parameter.annotation)
                    attributes[argument] = parameter.annotation
            assert signature.return_annotation is TensorDesc
            assert tensors
            entry = SimpleNamespace(describe=function, tensors=tensors, attributes=attributes)
            self.plugins[plugin_id] = entry
            space = self.op.__dict__.setdefault(namespace, SimpleNamespace())
            assert not hasattr(space, name), f"already has a definition for {name}"
            setattr(space, name, entry)
            return function

        return decorate

    @staticmethod
    def _attribute(name, annotation):
        assert name not in ("outputs", "stream", "tactic")
        if annotation not in (int, float, bytes, bool, str):
            assert typing.get_origin(annotation) is np.ndarray, f"{name}: {annotation} cannot be serialized"
            (kind,) = typing.get_args(typing.get_args(annotation)[1])
            assert kind in (np.int32, np.int64, np.float32)

    def _later(self, kind, tensor, rest, back):
        """A decorator of a function of the registered arguments and `rest`."""

        def outer(plugin_id):
            def decorate(function):
                entry, signature = self.plugins[plugin_id], inspect.signature(function)
                wanted = [*entry.tensors, *entry.attributes, *rest]
                assert list(signature.parameters) == wanted, f"{kind} takes {signature}, wanted {wanted}"
                annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
                assert all(annotations[name] is tensor for name in entry.tensors)
                assert all(annotations[name] == annotation for name, annotation in entry.attributes.items())
                assert typing.get_args(annotations["outputs"]) == (tensor,)
                assert all(annotations[name] is int for name in ("stream", "tactic") if name in annotations)
                back(signature.return_annotation)
                setattr(entry, kind, function)
                return function

            return decorate

        return outer

    def decorators(self):
        def four(annotation):
            name, ptx, launch, scalars = typing.get_args(annotation)
            assert (name, ptx, launch) == (str, str, KernelLaunchParams)
            assert issubclass(scalars, SymIntExprs)

        def combinations(annotation):
            assert typing.get_origin(annotation) is list
            assert typing.get_args(annotation) == (AutoTuneCombination,)

        def nothing(annotation):
            assert annotation is None

        return {
            "register": self.register,
            "autotune": self._later("autotune", TensorDesc, ["outputs"], combinations),
            "aot_impl": self._later("aot_impl", TensorDesc, ["outputs", "tactic"], four),
            "impl": self._later("impl", Tensor, ["outputs", "stream"], nothing),
        }


def modules():
    """`tensorrt` and `tensorrt.plugin`, with nothing registered."""
    tensorrt, plugin = ModuleType("tensorrt"), ModuleType("tensorrt.plugin")
    registry = Registry()
    tensorrt.DataType, tensorrt.plugin = DataType, plugin
    content = {
        **registry.decorators(),
        "op": registry.op,
        "registry": registry,
        "TensorDesc": TensorDesc,
        "Tensor": Tensor,
        "ShapeExpr": ShapeExpr,
        "SymInt32": SymInt32,
        "SymIntExprs": SymIntExprs,
        "min": _both(min),
        "max": _both(max),
        "KernelLaunchParams": KernelLaunchParams,
        "AutoTuneCombination": AutoTuneCombination,
        "cdiv": _both(lambda a, b: -(-a // b)),
    }
    vars(plugin).update(content)
    return tensorrt, plugin


class Stages:
    """What the builder asks a plugin, in its order, for inputs of these types and sizes (a name: known later)."""

    def __init__(self, plugin, plugin_id, inputs, **attributes):
        self.entry = plugin.registry.plugins[plugin_id]
        assert list(inputs) == self.entry.tensors
        self.inputs, self.attributes = inputs, attributes

    def _descriptions(self, fake=False, known=False):
        for dtype, shape in self.inputs.values():
            sizes = [ShapeExpr(None if fake else size) for size in shape]
            shown = tuple(size if isinstance(size, int) else -1 for size in shape) if known else None
            yield TensorDesc(sizes, dtype, shown)

    def output(self, sizes):
        """Type and shape of y; first asked for with fake sizes, for the type."""
        assert self.entry.describe(*self._descriptions(fake=True), **self.attributes).dtype in DataType
        y = self.entry.describe(*self._descriptions(), **self.attributes)
        return y.dtype, tuple(ShapeExpr(size).at(sizes) for size in y.shape_expr)

    def combinations(self):
        """Types of inputs and output, and tactics, for each combination."""
        descriptions = list(self._descriptions(known=True))
        y = self.entry.describe(*descriptions, **self.attributes)
        combinations = self.entry.autotune(*descriptions, *self.attributes.values(), (y,))
        assert all(len(one.types) == len(self.inputs) + 1 for one in combinations)
        return [([kind.name for kind in one.types], one.tactics) for one in combinations]

    def launch(self, tactic, sizes):
        """Kernel name, PTX, launch parameters and scalars, worked out."""
        descriptions = list(self._descriptions(known=True))
        y = self.entry.describe(*descriptions, **self.attributes)
        name, ptx, launch, scalars = self.entry.aot_impl(*descriptions, *self.attributes.values(), (y,), tactic)
        assert isinstance(name, str)
        assert isinstance(ptx, str)
        assert isinstance(launch, KernelLaunchParams)
        assert all(isinstance(scalar, SymInt32) for scalar in scalars), "scalars must be SymInt32"
        numbers = {part: getattr(launch, part).at(sizes) for part in KernelLaunchParams.NAMES}
        return name, ptx, numbers, [scalar.at(sizes) for scalar in scalars]
