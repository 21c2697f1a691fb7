"""rsft and da: which traces are taken, what each weighs, and a student from each."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.core.artifact import Artifact  # noqa: E402
from soloist.toolchain.distill.methods.agentark import DiverseOptions, Options, consensus, diverse  # noqa: E402
from soloist.toolchain.distill.methods.attempts import distance, right_attempts  # noqa: E402
from soloist.toolchain.distill.model import Student, load_base  # noqa: E402
from soloist.toolchain.distill.objective import CrossEntropy  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig, parts  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.student.artifact import StudentFacts  # noqa: E402

ADD, MUL, SUB = ("add(5+7) = 12",), ("mul(3*4) = 12",), ("add(5+1) = 6", "mul(6*2) = 12")


@pytest.fixture
def one(tokenizer):
    """What rsft takes."""

    def take(runs, mode="tools", **options):
        return consensus(runs, Setup(tokenizer, recheck, mode, options=Options(**options)))

    return take


@pytest.fixture
def many(tokenizer):
    """What da takes."""

    def take(runs, mode="tools", **options):
        return diverse(runs, Setup(tokenizer, recheck, mode, options=DiverseOptions(**options)))

    return take


def called(group):
    """The last words of each conversation."""
    return [example.messages[-1]["content"] for example in group.examples]


# --- rsft


def test_the_consensus_is_the_majority_of_last_attempts(one, debate_of):
    runs = [
        debate_of([[ADD, ("add(5+6) = 11",), ("add(5+6) = 11",)], [ADD, MUL, ("add(5+6) = 11",)]], number=1),
        debate_of([[ADD, ADD, MUL], [ADD, ("add(5+6) = 11",), ("add(5+6) = 11",)]], number=2),
    ]
    chosen = one(runs)
    assert called(chosen.groups[0]) == ["mul(3*4)"], "b was wrong before"
    assert (len(chosen.groups), chosen.notes) == (1, {"corrective": 1})
    assert chosen.rejected == {"the majority's answer is wrong": 1}


def test_corrective_traces_can_be_ignored_or_asked_for(one, debate_of):
    changed = debate_of([[ADD, ("add(5+6) = 11",), ADD], [ADD, MUL, ADD]], number=1)
    steady = debate_of([[ADD, ADD, ("add(5+6) = 11",)], [ADD, ADD, ("add(5+6) = 11",)]], number=2)
    chosen = one([changed, steady], corrective="ignore")
    assert [called(group) for group in chosen.groups] == [["add(5+7)"], ["add(5+7)"]], "what most say in the same words"
    chosen = one([changed, steady], corrective="only")
    assert [called(group) for group in chosen.groups] == [["mul(3*4)"]]
    assert chosen.rejected == {"no corrective trace": 1}


@pytest.mark.parametrize("method", ["one", "many"])
def test_corrective_only_refuses_traces_of_the_last_round_alone(method, request, debate_of):
    take = request.getfixturevalue(method)
    last_round = [debate_of([[ADD, MUL, SUB]], number=number) for number in range(3)]
    with pytest.raises(DataError, match="corrective=only: these traces hold one attempt of each agent"):
        take(last_round, corrective="only")
    assert len(take(last_round).groups) == 3


# --- da


def test_a_question_with_one_correct_trace_is_dropped_by_da_and_kept_by_rsft(one, many, debate_of):
    two = debate_of([[ADD, MUL, ("add(5+6) = 11",)]], number=1)
    single = debate_of([[ADD, ("add(5+6) = 11",), ("add(5+5) = 10",)]], number=2)
    alike = debate_of([[ADD, ADD, ADD]], number=3)
    assert len(one([two, single, alike]).groups) == 3
    chosen = many([two, single, alike])
    assert [group.examples[0].question_id for group in chosen.groups] == ["q1", "q3"]
    assert [len(group.examples) for group in chosen.groups] == [2, 1], "two traces that agree word for word are one"
    assert chosen.rejected == {"fewer than 2 correct traces": 1}
    dropped = many([two, single, alike], alike="drop")
    assert [group.examples[0].question_id for group in dropped.groups] == ["q1"]
    assert dropped.rejected == {"fewer than 2 correct traces": 1, "fewer than two different correct traces": 1}


def test_traces_are_taken_farthest_first_while_they_are_apart(many, debate_of, tokenizer):
    near = ("add(5+07) = 12",)
    run = debate_of([[ADD, near, SUB, MUL]])
    assert called(many([run]).groups[0]) == ["add(5+7)", "mul(3*4)", "mul(6*2)"]
    assert called(many([run], k_max=2).groups[0])[1:] == ["mul(3*4)"], "the farthest of the three"
    a, b, c, d = right_attempts(run, Setup(tokenizer, recheck))
    assert distance(a, b) < 0.1 < distance(a, c) < distance(a, d)
    assert len(many([run], k_max=9).groups[0].examples) == 3
    assert len(many([run], k_max=9, apart=0.0).groups[0].examples) == 4
    assert len(many([run], apart=1.0).groups[0].examples) == 1


def test_corrective_traces_are_preferred_among_those_far_enough(many, debate_of):
    wrong = ("add(5+6) = 11",)
    run = debate_of([[ADD, wrong, SUB, wrong], [ADD, ADD, SUB, MUL]])
    first, *rest = called(many([run], k_max=2).groups[0])
    assert {first, *rest} == {"add(5+7)", "mul(3*4)"}, "b's and d's, who were wrong before"
    assert many([run], k_max=2).notes["corrective"] == 2
    assert called(many([run], k_max=2, corrective="only").groups[0]) == [first, *rest]


def test_two_correct_traces_are_enough_though_one_alone_is_corrective(many, debate_of):
    wrong = ("add(5+6) = 11",)
    chosen = many([debate_of([[ADD, wrong], [ADD, MUL]])], corrective="only")
    assert [called(group) for group in chosen.groups] == [["mul(3*4)"]]
    with pytest.raises(DataError, match="1 x fewer than 2 correct traces"):
        many([debate_of([[wrong, wrong], [wrong, MUL]])], corrective="only")


def test_the_choice_is_measured(many, debate_of, tokenizer):
    runs = [debate_of([[ADD, MUL, ADD]], number=1), debate_of([[ADD, ("add(5+07) = 12",), ADD]], number=2)]
    chosen = many(runs)
    a, b, _ = right_attempts(runs[0], Setup(tokenizer, recheck))
    assert chosen.counts.notes == {
        "mean_k": 1.5,
        "k": {"1": 1, "2": 1},
        "mean_distance": round(distance(a, b), 3),
        "corrective": 0,
    }
    assert (chosen.counts.kept, chosen.counts.conversations) == (2, 3)


def test_every_question_weighs_what_one_trace_would(many, debate_of):
    (group,) = many([debate_of([[ADD, MUL, SUB]])]).groups
    assert [set(example.weights) for example in group.examples] == [{1 / 3}] * 3
    assert all(len(example.weights) == len(example.ids) for example in group.examples)
    (alone,) = many([debate_of([[ADD, MUL, SUB]])], k_max=1).groups
    assert alone.examples[0].weights == ()


def test_the_loss_is_the_formulas(many, debate_of, tiny_base):
    runs = [debate_of([[ADD, MUL, SUB]], number=1), debate_of([[MUL, SUB, SUB]], number=2)]
    groups = many(runs).groups
    model, tokenizer = load_base(tiny_base)
    student = Student(model.double(), tokenizer, torch.device("cpu"))
    plain = load_base(tiny_base)[0].double()
    want = weight = 0.0
    for group in groups:
        for example in group.examples:
            rows = plain(torch.tensor([example.ids])).logits[0].log_softmax(-1).detach()
            places = [i for i, own in enumerate(example.trained) if own]
            want -= sum(float(rows[i - 1, example.ids[i]]) for i in places) / len(group.examples)
            weight += len(places) / len(group.examples)
    objective = CrossEntropy()
    counts = objective.counts(groups)
    whole = objective.terms(student, pack(groups), counts)["lm"].item()
    assert whole == pytest.approx(want / weight, rel=1e-7)
    split = sum(objective.terms(student, pack(part), counts)["lm"].item() for part in parts(groups, 1))
    assert split == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_da_with_one_trace_is_rsft_token_for_token(one, many, debate_of, mode):
    wrong = ("add(5+6) = 11",)
    runs = [
        debate_of([[ADD, MUL, SUB]], number=1),
        debate_of([[ADD, wrong, SUB], [ADD, MUL, SUB]], number=2),
        debate_of([["5 + 7 = 12", "3 * 4 = 12", "I say 11"]], number=3),
        debate_of([[MUL, MUL, wrong]], number=4),
    ]
    assert len(one(runs, mode).groups) == 4
    assert many(runs, mode, k_max=1).groups == one(runs, mode).groups
    assert many(runs, mode, k_max=1, corrective="ignore").groups == one(runs, mode, corrective="ignore").groups


# --- both


def test_cot_and_plain_text(many, debate_of, tokenizer, trained):
    (worked,) = many([debate_of([[ADD, SUB]])], "cot").groups
    assert [trained(e, tokenizer) for e in worked.examples] == [
        "5+7 = 12\n#### 12<|im_end|>",
        "5+1 = 6\n6*2 = 12\n#### 12<|im_end|>",
    ]
    for mode in ("tools", "cot"):
        (text,) = many([debate_of([["5 + 7 = 12", "20 - 8 = 12"]])], mode).groups
        assert [trained(e, tokenizer) for e in text.examples] == [
            "5 + 7 = 12\n#### 12<|im_end|>",
            "20 - 8 = 12\n#### 12<|im_end|>",
        ]


@pytest.mark.parametrize("method", ["one", "many"])
def test_bad_input_is_refused_by_its_reason(method, request, debate_of):
    take = request.getfixturevalue(method)
    with pytest.raises(DataError, match=r"\(2 x attempts are not graded\)"):
        take([debate_of([[ADD, MUL]], graded=False, number=n) for n in (1, 2)])
    with pytest.raises(DataError, match="1 x no correct attempt"):
        take([debate_of([[("add(5+6) = 11",), ("add(5+5) = 10",)]])])
    with pytest.raises(DataError, match="there are no traces"):
        take([])
    with pytest.raises(DataError, match="q4: split 'test' may not be trained on"):
        take([debate_of([[ADD, MUL]], split="test", number=4)])


def test_options_are_checked():
    with pytest.raises(UsageError, match=r"method da: k_max: .*greater than or equal to 1"):
        DistillConfig(method="da", options={"k_max": 0}).settled()
    with pytest.raises(UsageError, match="method rsft: k_max: unknown field"):
        DistillConfig(method="rsft", options={"k_max": 2}).settled()


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_the_recorded_runs(tokenizer, mode, recorded_runs):
    def take(select, options):
        return select(recorded_runs, Setup(tokenizer, recheck, mode, 4096, options=options))

    alone = {group.examples[0].question_id: group for group in take(consensus, Options()).groups}
    several = take(diverse, DiverseOptions(apart=0.0))
    assert len(alone) > 30
    assert sum(several.notes["k"].values()) == len(several.groups) > 30
    assert all(len({e.ids for e in group.examples}) == len(group.examples) for group in several.groups)
    assert all(example.targets > 0 for example in several.examples)
    same = {group.examples[0].question_id: group for group in take(diverse, DiverseOptions(k_max=1)).groups}
    both = same.keys() & alone.keys()
    assert len(both) > 30
    assert all(same[name] == alone[name] for name in both)


@pytest.mark.parametrize("method", ["rsft", "da"])
def test_a_student_comes_out(method, debate_of, traces_of, tiny_base, tmp_path):
    runs = [debate_of([[ADD, MUL, SUB]], number=number) for number in range(6)]
    train = TrainConfig(batch_size=3, learning_rate=3e-3, precision="fp32", device="cpu")
    traces = traces_of(runs)
    student = distill(DistillConfig(method=method, train=train), traces, tiny_base, tmp_path / "student")
    assert Artifact.open(tmp_path / "student", stage="distill").digest == student.digest
    facts = student.read(StudentFacts)
    assert (facts.method, facts.data.kept) == (method, 6)
    assert facts.data.conversations == (6 if method == "rsft" else 18)
    assert facts.training.steps == 2
    assert math.isfinite(facts.training.last_loss)
    stamp = (student.path / "model.safetensors").stat().st_mtime_ns
    again = distill(DistillConfig(method=method, train=train), traces, tiny_base, tmp_path / "student")
    assert again.digest == student.digest
    assert (student.path / "model.safetensors").stat().st_mtime_ns == stamp
