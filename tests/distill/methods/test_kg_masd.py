"""KG-MASD: unverified runs dropped or weighed, verified facts before the question, also when the student is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.core.artifact import stage  # noqa: E402
from soloist.toolchain.desk.graph import desk_graph  # noqa: E402
from soloist.toolchain.desk.tools import desk_tools  # noqa: E402
from soloist.toolchain.distill.methods.kg_masd import METHOD, Options, select  # noqa: E402
from soloist.toolchain.distill.model import Student, load_base  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.knowledge.context import FILE, graph_beside, informed, with_facts  # noqa: E402
from soloist.toolchain.student.artifact import read_card  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.tools.calls import parse_call, run_call  # noqa: E402
from soloist.toolchain.traces.schema import Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs  # noqa: E402

SPIDER = "Facts:\n(spider, has legs, 8)\n\n"


def counted(number, *, forged=False, verdict="correct", split="train", **changes):
    """The legs of some spiders, by the desk's tool; forged: the working says that a spider has 4 legs twice."""
    call = parse_call(f"legs({number} spiders)", desk_tools())
    made = run_call(call, desk_tools())
    steps = (f"spider: {2 * number} * 4 = {8 * number}",) if forged else made.steps
    record = {
        "name": call.name,
        "arguments": dict(call.arguments),
        "call": f"legs({number} spiders)",
        "result": made.value,
        "steps": steps,
    }
    use = ToolUse(**{**record, **changes})
    asked = f"How many legs have {number} spiders?"
    question = Question(id=f"q{number}", question=asked, gold=made.value, split=split, scorer="number")
    turn = Turn(id=0, agent="reader", role="reader", model="m", text=use.call, tools=(use,), answer=made.value)
    return Run(question=question, team="t", turns=(turn,), path=(0,), answer=made.value, verdict=verdict)


def setup_of(tokenizer, mode="tools", **options):
    return Setup(tokenizer, recheck, mode=mode, max_length=4096, options=Options(**options))


RUNS = [counted(2), counted(3, forged=True), counted(5), counted(7, verdict="wrong")]


def test_a_run_with_an_unverified_triple_is_dropped(tokenizer):
    chosen = select(RUNS, setup_of(tokenizer))
    assert [example.question_id for example in chosen.examples] == ["q2", "q5"]
    assert chosen.rejected == {"a triple that is not verified": 1, "no correct answer": 1}
    notes = chosen.counts.notes
    # a call and a fact of each of four runs; the forged fact is contradicted by the graph
    assert (notes["triples"], notes["verified"], notes["contradicted"]) == (8, 7, 1)
    assert notes["fact_verification_rate"] == 7 / 8
    assert notes["graph"] == desk_graph().digest
    assert notes["with_an_unverified_triple"] == 0


def test_or_it_weighs_less(tokenizer, tiny_base):
    chosen = select(RUNS, setup_of(tokenizer, unverified="weight", unverified_weight=0.25))
    assert [example.question_id for example in chosen.examples] == ["q2", "q3", "q5"]
    assert chosen.notes["with_an_unverified_triple"] == 1
    one, light, _ = chosen.examples
    assert one.weight == one.targets
    assert light.weight == 0.25 * light.targets
    model, _ = load_base(tiny_base)
    student = Student(model.double(), tokenizer, torch.device("cpu"))
    loss = METHOD.objective(student, setup_of(tokenizer))
    alone = [
        loss.terms(student, pack([group]), {"tokens": 1.0})["lm"].item() / group.examples[0].weight
        for group in chosen.groups
    ]
    weights = [example.weight for example in chosen.examples]
    both = loss.terms(student, pack(chosen.groups), loss.counts(chosen.groups))["lm"].item()
    assert both == pytest.approx(sum(w * a for w, a in zip(weights, alone, strict=True)) / sum(weights), rel=1e-6)


def test_or_it_is_kept_as_the_baseline(tokenizer):
    chosen = select(RUNS, setup_of(tokenizer, unverified="keep"))
    assert len(chosen.examples) == 3
    assert all(example.weights == () for example in chosen.examples)


def test_verified_facts_stand_before_the_question_and_nothing_else(tokenizer):
    inside = select(RUNS, setup_of(tokenizer, "cot", unverified="keep"))
    for example, number in zip(inside.examples, (2, 3, 5), strict=True):
        asked = f"{SPIDER}How many legs have {number} spiders?"
        assert example.messages[0] == {"role": "user", "content": asked}
        # neither the forged fact nor a call with its result
        assert "(spider, has legs, 4)" not in asked
        assert str(8 * number) not in asked.removeprefix("Facts:\n(spider, has legs, 8)")
        prompt = tokenizer.decode([i for i, t in zip(example.ids, example.trained, strict=True) if not t])
        assert asked in prompt
    assert inside.notes["with_facts"] == 3


@pytest.mark.parametrize(("mode", "context", "given"), [("tools", None, 0), ("tools", True, 2), ("cot", False, 0)])
def test_context_is_for_those_who_must_know_unless_told_otherwise(tokenizer, mode, context, given):
    chosen = select(RUNS, setup_of(tokenizer, mode, context=context))
    assert len(chosen.examples) == 2
    assert chosen.notes["with_facts"] == given
    assert sum(example.messages[0]["content"].startswith("Facts:") for example in chosen.examples) == given


def test_a_question_that_names_nothing_stays_as_it_is():
    assert with_facts("What is 3 + 4?", desk_graph()) == "What is 3 + 4?"
    assert with_facts("How many legs have 2 spiders?", desk_graph()) == f"{SPIDER}How many legs have 2 spiders?"


def test_only_the_question_of_a_conversation_is_informed():
    talk = [
        {"role": "system", "content": "a spider"},
        {"role": "user", "content": "legs of 1 spider?"},
        {"role": "assistant", "content": "spider"},
        {"role": "user", "content": "and of 2 spiders?"},
    ]
    changed = informed(talk, desk_graph())
    assert changed[1]["content"] == f"{SPIDER}legs of 1 spider?"
    assert [changed[i] for i in (0, 2, 3)] == [talk[i] for i in (0, 2, 3)]


def test_a_users_graph_is_what_counts(tokenizer, tmp_path):
    graph = tmp_path / "facts.tsv"
    graph.write_text("spider\thas legs\t8\n")
    assert select(RUNS, setup_of(tokenizer, graph=graph)).notes["graph_facts"] == 1
    assert Options(graph="desk").knowledge().digest == Options().knowledge().digest == desk_graph().digest
    graph.write_text("ant\thas legs\t6\n")
    with pytest.raises(DataError, match="3 x a triple that is not verified"):
        select(RUNS, setup_of(tokenizer, graph=graph))


def test_an_empty_graph_is_refused(tokenizer, tmp_path):
    empty = tmp_path / "facts.tsv"
    empty.write_text("# nothing yet\n")
    with pytest.raises(DataError, match="the knowledge graph is empty"):
        select(RUNS, setup_of(tokenizer, graph=empty))


def test_a_call_of_a_tool_that_is_not_at_hand_is_not_verified(tokenizer, run_of):
    with pytest.raises(DataError, match="2 x a triple that is not verified"):
        select([run_of(1), run_of(2)], setup_of(tokenizer))
    with pytest.raises(UsageError, match="tools cannot be used"):
        select([run_of(1)], setup_of(tokenizer, tools=("nowhere:nothing",)))


def test_held_out_questions_and_no_correct_run_are_refused(tokenizer):
    with pytest.raises(DataError, match="may not be trained on"):
        select([counted(2, split="held-out")], setup_of(tokenizer))
    with pytest.raises(DataError, match="no trace to learn from"):
        select([counted(2, verdict="wrong")], setup_of(tokenizer))


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_the_recorded_desk_is_verified(tokenizer, mode):
    path = Path(__file__).parents[3] / "toolchain" / "desk" / "recorded" / "traces.jsonl.gz"
    runs = list(read_runs(path))[:60]
    chosen = select(runs, setup_of(tokenizer, mode))
    assert chosen.counts.kept + sum(chosen.rejected.values()) == 60
    assert chosen.counts.kept > 30
    assert chosen.notes["fact_verification_rate"] > 0.9
    assert (chosen.notes["with_facts"] > 0) == (mode == "cot")


# ---------------------------------------------------------------- the stage and its student


@pytest.fixture
def traces(tmp_path, record_runs):
    runs = [counted(number, forged=number == 4) for number in range(2, 8)]
    return record_runs(runs, tmp_path / "t")


def config_of(mode, **options):
    train = TrainConfig(batch_size=3, learning_rate=3e-3, precision="fp32", device="cpu")
    return DistillConfig(method="kg-masd", mode=mode, options=options, train=train)


def test_a_student_with_facts_is_asked_with_them(tiny_base, traces, tmp_path):
    made = distill(config_of("cot"), traces, tiny_base, tmp_path / "student")
    card = read_card(made.path)
    assert (card.method, card.context, card.data.kept) == ("kg-masd", True, 5)
    assert card.data.notes["with_facts"] == 5
    beside = graph_beside(made.path / "model.safetensors")
    assert beside is not None
    assert beside.digest == graph_beside(made.path).digest == desk_graph().digest
    stamp = (made.path / FILE).stat().st_mtime_ns
    assert distill(config_of("cot"), traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / FILE).stat().st_mtime_ns == stamp

    from soloist.targets.base import Sampling
    from soloist.toolchain.teams.config import StudentEngineConfig
    from soloist.toolchain.teams.engines.base import Ask
    from soloist.toolchain.teams.engines.student import StudentEngine

    engine = StudentEngine(StudentEngineConfig(kind="student", path=str(made.path)))
    shown = []
    chat = engine.runtime.chat

    def watched(messages, *arguments, **more):
        shown.append(list(messages))
        return chat(messages, *arguments, **more)

    engine.runtime.chat = watched
    (reply,) = engine.ask([Ask([{"role": "user", "content": "How many legs have 9 spiders?"}], Sampling(max_tokens=2))])
    engine.close()
    assert shown == [[{"role": "user", "content": f"{SPIDER}How many legs have 9 spiders?"}]]
    assert reply.tokens_in > len(SPIDER)  # bytes are tokens here


def test_a_student_that_acts_needs_no_graph(tiny_base, traces, tmp_path):
    made = distill(config_of("tools"), traces, tiny_base, tmp_path / "student")
    assert json.loads((made.path / "student.json").read_text())["context"] is False
    assert not (made.path / FILE).exists()
    assert graph_beside(made.path) is None


@pytest.mark.parametrize("informed_student", [True, False])
def test_the_files_compiled_from_it_have_the_graph_beside_them(tmp_path, monkeypatch, informed_student):
    from soloist.targets.compile import Compiled
    from soloist.toolchain.export import stage as module
    from soloist.toolchain.student.student import open_student
    from soloist.toolchain.verify.process import Prompts
    from soloist.toolchain.verify.verdict import ExportFacts, Verdict

    def build(folder):
        (folder / "config.json").write_text("{}")
        if informed_student:
            desk_graph().save(folder / FILE)
        return {}

    def compiled(_models, out, format, name, **_):
        (out / format).mkdir(parents=True)
        (out / format / f"{name}.gguf").write_text("weights")
        return Compiled(f"{format}/{name}.gguf", 0.0, ())

    monkeypatch.setattr(module, "compile_format", compiled)
    monkeypatch.setattr(module.Comparison, "verdict_on", lambda *_: Verdict(verdict="pass"))
    student = open_student(stage("distill", tmp_path / "student", {}, [], build))
    made = module.export(
        student, tmp_path / "files", ["gguf-f16"], Prompts([[{"role": "user", "content": "q"}]], ["a"])
    )
    beside = graph_beside(made.path / made.read(ExportFacts).formats["gguf-f16"].path)
    assert (beside.digest if beside else None) == (desk_graph().digest if informed_student else None)
