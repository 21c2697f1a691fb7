"""llama.cpp's quantizer with our importances and types per tensor, and the file of importances."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp", reason="needs the extra 'llama-quantize'")

from soloist.kernels.errors import ArtifactError  # noqa: E402
from soloist.targets.gguf_file import read_gguf  # noqa: E402
from soloist.targets.llama_quantize import (  # noqa: E402
    mean_squares,
    quantize_gguf,
    read_importance,
    types,
    write_importance,
)
from soloist.targets.to_gguf import compile_gguf  # noqa: E402

DOWN = "blk.1.ffn_down.weight"
pytestmark = pytest.mark.usefixtures("one_thread")


def weights(file, name):
    """A tensor's values, and the type it has in the file."""
    tensor = next(tensor for tensor in read_gguf(file).tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type), tensor.tensor_type.name


def importances(file, seed=0):
    """Uneven ones for every matrix: a few columns count a thousand times more."""
    random = np.random.default_rng(seed)
    return {
        tensor.name: np.exp(random.normal(size=int(tensor.shape[0])) * 3).astype(np.float32)
        for tensor in read_gguf(file).tensors
        if len(tensor.shape) == 2
    }


def weighted_error(source, made, name, importance):
    wanted, got = weights(source, name)[0], weights(made, name)[0]
    return float(((wanted - got) ** 2 * importance).sum())


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A random model whose rows are as wide as a K-quant's block, F16."""
    tiny = runpy.run_path(str(Path(__file__).with_name("tiny_families.py")))
    out = tmp_path_factory.mktemp("wide")
    return out / compile_gguf(tiny["build"](out / "student", "llama-wide"), out, "F16", "Wide")["file"]


@pytest.mark.parametrize(
    ("type", "written"), [("iq4_nl", "IQ4_NL"), ("q4_k_m", "Q4_K"), ("Q6_K", "Q6_K"), ("IQ4_XS", "IQ4_XS")]
)
def test_importances_change_a_file_and_lower_the_weighted_error(wide, type, written, tmp_path):
    importance = importances(wide)
    facts = quantize_gguf(wide, tmp_path / "plain.gguf", type)
    assert facts["type"] == type.upper()
    assert facts["bytes"] == (tmp_path / "plain.gguf").stat().st_size
    quantize_gguf(wide, tmp_path / "weighted.gguf", type, importance=importance)
    quantize_gguf(wide, tmp_path / "other.gguf", type, importance=importances(wide, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.gguf", "plain.gguf", "weighted.gguf"]
    name = "blk.0.attn_output.weight"
    plain, weighted, other = (tmp_path / f"{kind}.gguf" for kind in ("plain", "weighted", "other"))
    assert facts["tensors"][written] >= 8
    assert weights(weighted, name)[1] == written
    errors = [weighted_error(wide, file, name, importance[name]) for file in (plain, weighted, other)]
    assert errors[1] < 0.95 * min(errors[0], errors[2])


@pytest.mark.parametrize(("type", "written"), [("q4_k_m", "Q5_0"), ("Q6_K", "Q8_0"), ("iq4_xs", "IQ4_NL")])
def test_rows_that_no_k_quant_fits_fall_back(tiny_gguf, type, written, tmp_path):
    assert quantize_gguf(tiny_gguf, tmp_path / "out.gguf", type)["tensors"][written] >= 11


def test_types_per_tensor_are_what_was_asked(tiny_gguf, tmp_path):
    wanted = {DOWN: "q8_0", "token_embd.weight": "q5_1", "blk.0.attn_q.weight": "f16", "blk.1.attn_q.weight": "q6_K"}
    facts = quantize_gguf(tiny_gguf, tmp_path / "mixed.gguf", "q4_0", overrides=wanted)
    kinds = {name: weights(tmp_path / "mixed.gguf", name)[1] for name in (*wanted, "blk.0.ffn_down.weight")}
    assert kinds == {
        DOWN: "Q8_0",
        "token_embd.weight": "Q5_1",
        "blk.0.attn_q.weight": "F16",
        "blk.1.attn_q.weight": "Q8_0",
        "blk.0.ffn_down.weight": "Q4_0",
    }
    assert facts["fell_back"] == {"blk.1.attn_q.weight": "Q8_0"}  # 64 columns are no Q6_K


def test_compile_gguf_takes_any_type_and_leaves_one_file(tiny, tiny_gguf, tmp_path):
    importance = importances(tiny_gguf)
    facts = compile_gguf(tiny, tmp_path, "IQ4_NL", "Tiny", importance=importance, overrides={DOWN: "q8_0"})
    assert facts["precision"] == "IQ4_NL"
    assert facts["tensors"]["Q8_0"] >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [facts["file"], facts["file"] + ".Modelfile"]
    direct = quantize_gguf(
        tiny_gguf, tmp_path / "direct.gguf", "iq4_nl", importance=importance, overrides={DOWN: "q8_0"}
    )
    assert direct["tensors"] == facts["tensors"]
    for name in (DOWN, "blk.0.attn_v.weight", "token_embd.weight"):
        np.testing.assert_array_equal(
            weights(tmp_path / facts["file"], name)[0], weights(tmp_path / "direct.gguf", name)[0]
        )


def test_two_bits_need_importances_and_say_so(wide, tmp_path):
    with pytest.raises(ArtifactError, match=r"could not write it as iq2_xxs \(.*imatrix"):
        quantize_gguf(wide, tmp_path / "out.gguf", "iq2_xxs")
    assert not list(tmp_path.iterdir())
    facts = quantize_gguf(wide, tmp_path / "out.gguf", "iq2_xxs", importance=importances(wide))
    assert facts["tensors"]["IQ2_XXS"] >= 6


def test_an_unknown_type_is_refused_with_the_known_ones(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match=r"'q9_k' is not a type llama.cpp quantizes to; use one of F16, .*IQ4_NL"):
        quantize_gguf(tiny_gguf, tmp_path / "out.gguf", "q9_k")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"importance": {"blk.9.ffn_up.weight": np.ones(64)}}, "no tensor 'blk.9.ffn_up.weight' of the importance"),
        ({"importance": {DOWN: np.ones(64)}}, "'blk.1.ffn_down.weight' has 128 columns, its importance 64"),
        ({"importance": {DOWN: np.full(128, np.nan)}}, "is not made of finite squares"),
        ({"overrides": {"output.weight": "q8_0"}}, "no tensor 'output.weight', whose type"),
        ({"overrides": {DOWN: "q9"}}, "'q9' for 'blk.1.ffn_down.weight' is no type"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_and_leaves_nothing(tiny_gguf, tmp_path, options, message):
    with pytest.raises(ArtifactError, match=message):
        quantize_gguf(tiny_gguf, tmp_path / "out.gguf", "q4_0", **options)
    assert not list(tmp_path.iterdir())


def test_importances_are_written_as_llama_cpp_reads_them(tmp_path):
    """Names, shapes and keys: tools/imatrix and common/imatrix-loader.cpp of llama.cpp."""
    random = np.random.default_rng(0)
    sums = {DOWN: (random.random(128), 7), "blk.0.attn_q.weight": (random.random(64).astype(np.float32), 12)}
    file = tmp_path / "deep" / "imatrix.gguf"
    write_importance(file, sums, "traces of a team")
    assert [path.name for path in file.parent.iterdir()] == ["imatrix.gguf"]
    reader = read_gguf(file)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["traces of a team"]
    assert reader.fields["imatrix.chunk_count"].contents() == 1
    assert reader.fields["imatrix.chunk_size"].contents() == 12
    assert "general.architecture" not in reader.fields
    shapes = {tensor.name: ([int(n) for n in tensor.shape], tensor.tensor_type.name) for tensor in reader.tensors}
    assert shapes == {
        f"{DOWN}.in_sum2": ([128, 1], "F32"),
        f"{DOWN}.counts": ([1, 1], "F32"),
        "blk.0.attn_q.weight.in_sum2": ([64, 1], "F32"),
        "blk.0.attn_q.weight.counts": ([1, 1], "F32"),
    }
    back = read_importance(file)
    assert set(back) == set(sums)
    for name, (total, count) in sums.items():
        np.testing.assert_array_equal(back[name][0], np.float32(total))
        assert back[name][1] == count
    np.testing.assert_allclose(mean_squares(back)[DOWN], sums[DOWN][0] / 7, rtol=1e-6)
    assert (mean_squares({DOWN: (np.zeros(4), 0)})[DOWN] == 1).all()


def test_what_is_no_file_of_importances_is_refused(tiny_gguf, tmp_path):
    with pytest.raises(ArtifactError, match="not an importance matrix"):
        read_importance(tiny_gguf)
    with pytest.raises(ArtifactError, match="no such model file"):
        read_importance(tmp_path / "absent.gguf")
    write_importance(tmp_path / "empty.gguf", {})
    with pytest.raises(ArtifactError, match="no count for any tensor"):
        read_importance(tmp_path / "empty.gguf")
    write_importance(tmp_path / "cut.gguf", {DOWN: (np.ones(128), 3)})
    whole = (tmp_path / "cut.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-64])
    with pytest.raises(ArtifactError, match="cut off or damaged"):
        read_importance(tmp_path / "cut.gguf")


def test_the_types_are_those_of_llama_cpps_header():
    import llama_cpp

    for name in types():
        if name != "GUESSED":
            assert getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}") == gguf.LlamaFileType[f"MOSTLY_{name}"].value


@pytest.mark.slow
@pytest.mark.parametrize(("type", "written"), [("IQ4_NL", "IQ4_NL"), ("Q4_K_M", "Q4_K"), ("Q6_K", "Q6_K")])
def test_smollm2_in_llama_cpps_own_types(base_gguf, type, written, tmp_path):
    """Rows of 576 are no K-quant either; those of 1536 are."""
    importance = importances(base_gguf)
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    quantize_gguf(base_gguf, plain, type)
    quantize_gguf(base_gguf, weighted, type, importance=importance)
    down = "blk.3.ffn_down.weight"
    kinds = [weights(file, down)[1] for file in (plain, weighted)]
    errors = [weighted_error(base_gguf, file, down, importance[down]) for file in (plain, weighted)]
    assert kinds == [written, written]
    assert errors[1] < errors[0]
