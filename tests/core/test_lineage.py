import shutil

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.core.artifact import stage
from soloist.toolchain.core.lineage import Lineage, artifact_around, lineage_of, refuse_trained


@pytest.fixture
def family(tmp_path):
    """Imported traces, a student of them, its compiled file, in two folders."""

    def build(folder):
        (folder / "model.gguf").write_bytes(b"weights")
        return {}

    traces = stage("import", tmp_path / "data" / "traces", {}, [], lambda folder: {"benchmarks": {"MATH": "test"}})
    student = stage("distill", tmp_path / "run" / "student", {}, [traces], lambda folder: {})
    return traces, student, stage("export", tmp_path / "run" / "compiled", {}, [student], build)


def test_benchmarks_are_found_through_the_parents(family):
    compiled = family[-1]
    for artifact in family:
        assert lineage_of([artifact]) == Lineage(("MATH",))
    assert artifact_around(compiled.path / "model.gguf").digest == compiled.digest
    assert artifact_around(compiled.path).digest == compiled.digest
    assert artifact_around(compiled.path.parent / "foreign.gguf") is None


def test_one_model_of_a_pair_belongs_to_its_artifact(family):
    _, student, _ = family

    def build(folder):
        (folder / "gguf-q8_0" / "solver").mkdir(parents=True)
        (folder / "gguf-q8_0" / "solver" / "solver.gguf").write_bytes(b"weights")
        return {}

    pair = stage("export", student.path.parent / "pair", {}, [student], build)
    around = artifact_around(pair.path / "gguf-q8_0" / "solver" / "solver.gguf")
    assert around.digest == pair.digest
    assert lineage_of([around]) == Lineage(("MATH",))


def test_a_parent_that_is_gone_is_told(family):
    traces, student, compiled = family
    shutil.rmtree(traces.path)
    lineage = lineage_of([compiled])
    assert lineage.benchmarks == ()
    assert len(lineage.missing) == 1
    assert traces.digest in lineage.missing[0]
    assert lineage_of([traces, student, compiled]) == Lineage(("MATH",))  # given, so not looked for


def test_another_artifact_in_its_place_is_not_taken_for_it(family, tmp_path):
    traces, student, _ = family
    shutil.rmtree(traces.path)
    stage("import", traces.path, {"other": 1}, [], lambda folder: {"benchmarks": {}})
    assert lineage_of([student]).missing


def test_refuse_trained():
    refuse_trained(Lineage(("MATH",)), [None, "GSM8K"])
    refuse_trained(Lineage(), ["MATH"])
    with pytest.raises(DataError, match="trained on test questions of MATH"):
        refuse_trained(Lineage(("GSM8K", "MATH")), ["math"])
    with pytest.raises(DataError, match="trained on test questions of GSM8K, MATH"):
        refuse_trained(Lineage(("GSM8K", "MATH")), ["MATH", None, "GSM8K", "MATH"])
