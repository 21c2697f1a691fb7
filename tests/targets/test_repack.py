import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soloist.kernels.errors import ArtifactError, UsageError
from soloist.targets.repack import (
    Matrix,
    NBits,
    dequantize_linear,
    from_block_dq,
    from_matmul_nbits,
    pack,
    stack,
    to_block_dq,
    to_matmul_nbits,
    to_q4_0,
    to_q5_0,
    to_q8_0,
    unpack,
)

gguf_blocks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("gguf_blocks.py"))))


def make(rows=3, columns=96, bits=4, group=32, zeros=False, seed=0) -> Matrix:
    random = np.random.default_rng(seed)
    scales = random.normal(size=(rows, -(-columns // group))).astype(np.float16)
    if bits != 4:
        half = 1 << bits - 1
        codes = random.integers(-half, half, (rows, columns)).astype(np.int8)
        return Matrix(codes, scales, group, narrow=None if bits == 8 else bits)
    points = random.integers(0, 16, scales.shape).astype(np.uint8) if zeros else None
    return Matrix(pack(random.integers(0, 16, (rows, columns)).astype(np.uint8)), scales, group, points)


def same(a: Matrix, b: Matrix) -> bool:
    zeros = (a.zeros is None and b.zeros is None) or np.array_equal(a.zeros, b.zeros)
    bits = a.codes.dtype == b.codes.dtype and np.array_equal(a.codes, b.codes)
    return bits and zeros and a.group == b.group and np.array_equal(a.scales.view(np.int16), b.scales.view(np.int16))


BLOCK = Matrix(pack((np.arange(32) % 16).astype(np.uint8)[None]), np.array([[0.5]], np.float16), 32)  # column c: c % 16


def test_known_bytes_of_one_block():
    assert to_q4_0(BLOCK).tobytes() == bytes([0x00, 0x38, *(17 * t for t in range(16))])  # 0x3800 is 0.5
    wanted = [0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE] * 2
    assert to_matmul_nbits(BLOCK).weight.tolist() == [[wanted]]
    signed = [0x98, 0xBA, 0xDC, 0xFE, 0x10, 0x32, 0x54, 0x76] * 2  # code 0 is -8, 0b1000
    assert to_block_dq(BLOCK, 1).data.tolist() == signed
    assert to_block_dq(BLOCK, 0).data.tolist() == signed
    assert to_block_dq(BLOCK, 0).shape == (32, 1)
    assert to_block_dq(BLOCK, 1).shape == (1, 32)
    eight = Matrix(np.array([[-128, -1, 0, 127] * 8], np.int8), np.array([[2.0]], np.float16), 32)
    assert to_q8_0(eight).tobytes()[:6] == bytes([0x00, 0x40, 0x80, 0xFF, 0x00, 0x7F])
    assert to_matmul_nbits(eight).weight[0, 0, :4].tolist() == [0, 127, 128, 255]
    five = Matrix(np.arange(-16, 16, dtype=np.int8)[None], np.array([[2.0]], np.float16), 32, narrow=5)
    # columns 16 to 31 are 0 to 15 and have the fifth bit; low bits of column t and t + 16 share a byte
    assert to_q5_0(five).tobytes() == bytes([0x00, 0x40, 0, 0, 0xFF, 0xFF, *(17 * t for t in range(16))])


def test_two_rows_of_a_transposed_tensor_share_bytes():
    codes = np.zeros((2, 32), np.uint8)
    codes[0, 0], codes[1, 0], codes[0, 1] = 9, 10, 15
    tensor = to_block_dq(Matrix(pack(codes), np.ones((2, 1), np.float16), 32), 0)
    assert tensor.data[:2].tolist() == [0x21, 0x87]  # (1, 2), then (7, -8), low first


def test_the_words_are_the_kernels_words():
    torch = pytest.importorskip("torch")
    from soloist.kernels.layout import Quantized, dequantize, pack_nibbles, unpack_nibbles

    codes = np.random.default_rng(1).integers(0, 16, (5, 160)).astype(np.uint8)
    words = pack_nibbles(torch.from_numpy(codes))
    assert np.array_equal(pack(codes), words.numpy())
    assert np.array_equal(unpack(words.numpy()), codes)
    assert np.array_equal(unpack_nibbles(words).numpy(), codes)
    for weight in (make(5, 160, group=64, zeros=True), make(5, 160), make(5, 160, 8, 128)):
        parts = (None if part is None else torch.from_numpy(part) for part in (weight.codes, weight.scales))
        zeros = None if weight.zeros is None else torch.from_numpy(weight.zeros)
        twin = Quantized(*parts, weight.group, zeros)
        assert same(Matrix.of(twin), weight)
        assert np.array_equal(dequantize(twin).numpy(), weight.dequantized())


@pytest.mark.parametrize("bits", [5, 6])
def test_narrow_codes_travel_in_the_next_container(bits):
    matrix = make(4, 160, bits, 64)
    assert (matrix.bits, matrix.stored_bits) == (bits, 8)
    values = matrix.dequantized()
    assert np.array_equal(gguf_blocks.from_q8_0(to_q8_0(matrix)).dequantized(), values)
    assert np.array_equal(from_matmul_nbits(to_matmul_nbits(matrix), 8, 160).dequantized(), values)
    assert np.array_equal(from_block_dq(to_block_dq(matrix)).dequantized(), values)
    if bits == 6:
        with pytest.raises(ArtifactError, match="6-bit codes cannot become Q5_0"):
            to_q5_0(matrix)
        return
    back = gguf_blocks.from_q5_0(to_q5_0(matrix))
    assert back.bits == 5
    assert np.array_equal(back.codes, matrix.codes)
    assert np.array_equal(back.dequantized(), values)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([32, 64, 128]), st.booleans(), st.integers(0, 9999))
def test_every_format_comes_back(rows, blocks, group, eight, seed):
    matrix = make(rows, 32 * blocks, 8 if eight else 4, group, seed=seed)
    nbits = to_matmul_nbits(matrix)
    assert nbits.weight.shape[:2] == matrix.scales.shape
    assert same(from_matmul_nbits(nbits, matrix.stored_bits, matrix.shape[1]), matrix)
    for axis in (0, 1):
        assert same(from_block_dq(to_block_dq(matrix, axis)), matrix)
    back = gguf_blocks.from_q8_0(to_q8_0(matrix)) if eight else gguf_blocks.from_q4_0(to_q4_0(matrix))
    assert np.array_equal(back.codes, matrix.codes)
    assert np.array_equal(back.dequantized(), matrix.dequantized())
    repeated = np.repeat(matrix.scales, group // 32, axis=1)[:, :blocks]
    assert np.array_equal(back.scales.view(np.int16), repeated.view(np.int16))


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([32, 64, 128]), st.integers(0, 9999))
def test_zero_points_come_back_where_they_have_a_place(rows, blocks, group, seed):
    matrix = make(rows, 32 * blocks, 4, group, zeros=True, seed=seed)
    assert same(from_matmul_nbits(to_matmul_nbits(matrix), 4, matrix.shape[1]), matrix)
    for write in (to_q4_0, to_block_dq):
        with pytest.raises(ArtifactError, match="zero points have no place"):
            write(matrix)


def test_ggufs_own_reader_sees_our_values():
    quants = pytest.importorskip("gguf").quants
    kinds = pytest.importorskip("gguf").GGMLQuantizationType
    made = (
        (make(), to_q4_0, kinds.Q4_0),
        (make(bits=8, group=64), to_q8_0, kinds.Q8_0),
        (make(bits=5), to_q5_0, kinds.Q5_0),
    )
    for matrix, write, kind in made:
        assert np.array_equal(quants.dequantize(write(matrix), kind), matrix.dequantized())


def test_what_has_no_place_is_refused():
    with pytest.raises(ArtifactError, match="8-bit codes cannot become Q4_0"):
        to_q4_0(make(bits=8))
    with pytest.raises(ArtifactError, match="4-bit codes cannot become Q8_0"):
        to_q8_0(make())
    with pytest.raises(UsageError, match="axis 2"):
        to_block_dq(make(), 2)
    with pytest.raises(UsageError, match="different bits or groups"):
        stack([make(), make(group=64)])
    nbits = to_matmul_nbits(make())
    with pytest.raises(ArtifactError, match="finer than fp16"):
        from_matmul_nbits(NBits(nbits.weight, nbits.scales * np.float32(1.0001), None), 4, 96)


@pytest.mark.parametrize("zeros", [False, True])
def test_rows_move_with_all_that_belongs_to_them(zeros):
    matrix = make(6, zeros=zeros)
    order = np.array([4, 0, 5, 1, 3, 2])
    assert np.array_equal(matrix.rows(order).dequantized(), matrix.dequantized()[order])
    both = stack([matrix, matrix.rows(order)])
    assert both.shape == (12, 96)
    assert np.array_equal(both.dequantized()[6:], matrix.dequantized()[order])


# --- the formats in ONNX Runtime ---


def _run(nodes, initializers, x, columns):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make_info = onnx.helper.make_tensor_value_info
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = onnx.helper.make_graph(
        nodes, "one", [make_info("x", kind, x.shape)], [make_info("y", kind, None)], initializers
    )
    imports = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = ort.SessionOptions()
    # the runtime turns the tensor and its product into a MatMulNBits, whose activations it would round to int8
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("axis", [0, 1])
def test_onnx_runtime_multiplies_by_the_block_tensor(bits, group, axis):
    onnx = pytest.importorskip("onnx")
    matrix = make(6, 256, bits, group)
    x = np.random.default_rng(2).normal(size=(5, 256)).astype(np.float32)
    initializers, dequantize = dequantize_linear(matrix, "w", axis)
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    if axis == 1:
        product = onnx.helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    exact = x.astype(np.float64) @ matrix.dequantized().astype(np.float64).T
    got = _run([dequantize, product], initializers, x, 256)
    # fp32 sums of 256 products in whatever order
    assert np.abs(got - exact).max() <= 256 * 2.0**-23 * (np.abs(x) @ np.abs(matrix.dequantized().T)).max()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_block_tensor_is_read_to_the_very_values(dtype):
    onnx = pytest.importorskip("onnx")
    matrix = make(7, 64, 4, 32)
    initializers, dequantize = dequantize_linear(matrix, "w", 0, dtype)
    x = np.zeros((64, 7), dtype)
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    got = _run([dequantize, add], initializers, x, 64)
    assert np.array_equal(got, matrix.dequantized().T.astype(dtype))


@pytest.mark.parametrize(
    ("bits", "group", "zeros", "columns"),
    [(4, 32, False, 96), (4, 64, False, 96), (4, 128, True, 288), (8, 32, False, 96), (8, 128, False, 160)],
)
def test_matmul_nbits_multiplies_by_our_matrix(bits, group, zeros, columns):
    onnx = pytest.importorskip("onnx")
    matrix = make(10, columns, bits, group, zeros)
    inputs = to_matmul_nbits(matrix)
    arrays = {"b": inputs.weight, "s": inputs.scales, **({} if inputs.zeros is None else {"z": inputs.zeros})}
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", *arrays],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=10,
        bits=bits,
        block_size=group,
        accuracy_level=1,
    )
    x = np.random.default_rng(2).normal(size=(4, columns)).astype(np.float32)
    exact = x.astype(np.float64) @ matrix.dequantized().astype(np.float64).T
    got = _run([node], initializers, x, columns)
    assert np.abs(got - exact).max() <= columns * 2.0**-23 * (np.abs(x) @ np.abs(matrix.dequantized().T)).max()


def test_importing_it_needs_no_torch():
    code = "import sys; import soloist.targets.quantized, soloist.targets.repack; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
