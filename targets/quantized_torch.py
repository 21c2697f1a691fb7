"""A quantized student in torch: its integers at work, or the values they stand for.

    integers   modules that hold codes and scales of the one layout (`soloist.kernels.layout`) and multiply through the
               kernels: up to 16 rows gemv, more gemm, gate and up of a gated layer in one pass; embeddings look up
               codes, and a head tied to the embedding is the same tensors
    values     the student's own modules, filled with what the integers stand for, unpacked once

`kernels="auto"` keeps integers where Triton runs on them, a GPU of an architecture we build for, and values elsewhere:
the plain reference unpacks a whole matrix at every call (SmolLM2-135M on one core: 90 MB and 1.6 s a token, as values
538 MB and 0.09 s). "triton" and "reference" are integers in any case, and do what they say or raise. Triton takes
float16 or bfloat16 activations; bfloat16 unless asked, since it cannot overflow. Left out: training, moving a model to
another device once it is open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soloist.kernels.choose import Want, choose
from soloist.kernels.errors import ArtifactError, UsageError
from soloist.kernels.gemv import MAX_ROWS
from soloist.kernels.layout import Quantized, dequantize, narrow_of
from soloist.targets.base import require
from soloist.targets.quantized import read_quantized
from soloist.targets.repack import Matrix

LLAMA_KIND = ("llama", "mistral", "qwen2", "qwen3")  # down(silu(gate(x)) * up(x)), rotary positions, plain attention
Product = Callable[..., Tensor]


@dataclass(frozen=True)
class Place:
    """Where a quantized student runs and by what: `reason` says why, in a sentence."""

    device: str
    dtype: torch.dtype
    kernels: Want
    integers: bool
    triton: bool
    reason: str


def place(device: str | None, dtype: str | None, kernels: Want) -> Place:
    """Decide before anything is read. Without a device: a GPU that the kernels run on, else the CPU.

    Raises:
        UsageError: Triton on a CPU without its interpreter, or float32 activations for it.
        MissingExtraError: Triton wanted and not installed.
        ResourceError: a device that is not there.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    choice = choose("w4a16_gemv", wanted, kernels)
    triton = choice.impl == "triton"
    if kernels == "auto" and not triton:
        wanted = device or "cpu"
    kind = getattr(torch, dtype or ("bfloat16" if triton else "float32"))
    if triton and kind == torch.float32:
        raise UsageError("the Triton kernels take float16 or bfloat16 activations: choose such a dtype")
    return Place(wanted, kind, kernels, triton or kernels != "auto", triton, choice.reason)


def as_torch(matrix: Matrix, device: str = "cpu") -> Quantized:
    """The same integers as tensors; on the CPU the memory is shared."""
    codes, scales = torch.from_numpy(matrix.codes), torch.from_numpy(matrix.scales)
    zeros = None if matrix.zeros is None else torch.from_numpy(matrix.zeros)
    return Quantized(codes, scales, matrix.group, zeros, narrow_of(matrix.bits)).to(device)


class _Holder(nn.Module):  # type: ignore[misc]  # torch is not typed where the check runs
    """A quantized matrix as buffers."""

    def __init__(self, weight: Quantized) -> None:
        super().__init__()
        for name in ("codes", "scales", "zeros"):
            self.register_buffer(name, getattr(weight, name))
        self.matrix = weight

    def extra_repr(self) -> str:
        rows, columns = self.matrix.shape
        return f"{rows} x {columns}, {self.matrix.bits} bits in groups of {self.matrix.group}"


class QuantizedLinear(_Holder):
    """y = x W^T + bias of a quantized W, by one of `products`."""

    def __init__(self, weight: Quantized, bias: Tensor | None, product: Product) -> None:
        super().__init__(weight)
        self.register_buffer("bias", bias)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x.reshape(-1, x.shape[-1]).contiguous(), self.matrix, bias=self.bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class QuantizedEmbedding(_Holder):
    """Rows of a quantized table, unpacked one by one as they are looked up."""

    def __init__(self, weight: Quantized, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype

    def forward(self, tokens: Tensor) -> Tensor:
        table, rows = self.matrix, tokens.reshape(-1)
        zeros = None if table.zeros is None else table.zeros[rows]
        looked_up = dequantize(Quantized(table.codes[rows], table.scales[rows], table.group, zeros), self.dtype)
        return looked_up.view(*tokens.shape, looked_up.shape[1])


class QuantizedGate(nn.Module):  # type: ignore[misc]  # torch is not typed where the check runs
    """down(silu(x Gate^T) * (x Up^T)): the gated layer of Llama and its kind, gate and up in one pass over x."""

    def __init__(self, gate: QuantizedLinear, up: QuantizedLinear, down: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate_proj
        y = gate.product(x.reshape(-1, x.shape[-1]).contiguous(), gate.matrix, up=self.up_proj.matrix)
        return self.down_proj(y.view(*x.shape[:-1], y.shape[-1]))


def products(device: str, kernels: Want) -> Mapping[int, Product]:
    """The products by the bits a code is stored in; each takes (rows, K) and picks gemv or gemm by the rows."""

    def product(bits: int) -> Product:
        gemv = choose(f"w{bits}a16_gemv", device, kernels).run
        gemm = choose(f"w{bits}a16_gemm", device, kernels).run

        def multiply(x: Tensor, weight: Quantized, **extra: Any) -> Tensor:
            y: Tensor = (gemv if x.shape[0] <= MAX_ROWS else gemm)(x, weight, **extra)
            return y

        return multiply

    return {4: product(4), 8: product(8)}


def open_quantized(path: Path, where: Place) -> Any:
    """The model of a quantized folder, ready to run.

    Raises:
        ArtifactError: no quantized student, or one whose integers do not fit its config.
    """
    content = read_quantized(path)
    transformers, accelerate = require("transformers", "train"), require("accelerate", "train")
    config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
    with accelerate.init_empty_weights(include_buffers=False):  # no float weight is ever made
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=where.dtype)
    if (path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(path), local_files_only=True)
    state = {name: torch.from_numpy(array).to(where.device, where.dtype) for name, array in content.others.items()}
    matrices = {name: as_torch(matrix, where.device) for name, matrix in content.matrices.items()}
    if not where.integers:
        for name, matrix in matrices.items():
            state[name] = dequantize(matrix).to(where.dtype)
    _, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    if where.integers:
        _put(model, matrices, where)
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if unexpected or empty:
        raise ArtifactError(
            f"{path}: its weights do not fit its config.json ({(unexpected or empty)[0]} "
            f"{'has no place there' if unexpected else 'is missing'}); quantize the student again"
        )
    return model.to(where.device).requires_grad_(False).eval()


def _put(model: Any, matrices: Mapping[str, Quantized], where: Place) -> None:
    """Modules that hold integers in place of those that would hold floats."""
    by_bits = products(where.device, where.kernels)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is table.weight
    for name, matrix in matrices.items():
        path = name.removesuffix(".weight")
        try:
            old = model.get_submodule(path)
        except AttributeError as error:
            raise ArtifactError(f"{name}: quantized, and its model has no such matrix; quantize again") from error
        if tuple(old.weight.shape) != matrix.shape or type(old) not in (nn.Linear, nn.Embedding):
            shape = " x ".join(map(str, old.weight.shape))
            raise ArtifactError(f"{name}: quantized as {matrix.shape}, in its model {shape} of a {type(old).__name__}")
        product = by_bits[matrix.stored_bits]
        if old is table:
            model.set_submodule(path, QuantizedEmbedding(matrix, where.dtype))
            if tied:
                model.set_output_embeddings(QuantizedLinear(matrix, head.bias, product))
        else:
            bias = None if old.bias is None else old.bias.detach()
            model.set_submodule(path, QuantizedLinear(matrix, bias, product))
    if model.config.model_type in LLAMA_KIND and model.config.hidden_act == "silu":
        for name, module in list(model.named_modules()):
            if name.endswith(".mlp") and _can_be_one_pass(module.gate_proj, module.up_proj):
                model.set_submodule(name, QuantizedGate(module.gate_proj, module.up_proj, module.down_proj))


def _can_be_one_pass(gate: nn.Module, up: nn.Module) -> bool:
    if not isinstance(gate, QuantizedLinear) or not isinstance(up, QuantizedLinear):
        return False
    one, other = gate.matrix, up.matrix
    layouts_agree = (one.stored_bits, one.shape, one.group) == (other.stored_bits, other.shape, other.group)
    zeros_agree = (one.zeros is None) == (other.zeros is None)
    return layouts_agree and zeros_agree and gate.bias is None and up.bias is None


def weights_bytes(model: Any) -> int:
    """Bytes of all parameters and buffers; what two modules share counts once."""
    held = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())
