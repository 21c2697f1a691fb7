"""SAD: exact spans, observations never trained, both terms by hand, the curriculum, FireAct's real episodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.toolchain.artifact import stage  # noqa: E402
from soloist.toolchain.distill.data import Group, as_groups  # noqa: E402
from soloist.toolchain.distill.methods.base import Setup  # noqa: E402
from soloist.toolchain.distill.methods.sad import (  # noqa: E402
    ACT,
    NONE,
    REASON,
    Options,
    SpanLoss,
    difficulties,
    react_messages,
    segments,
    select,
    spanned,
)
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import DistillConfig, distill, recheck  # noqa: E402
from soloist.toolchain.distill.student import Student, load_base  # noqa: E402
from soloist.toolchain.distill.teacher import load_teacher  # noqa: E402
from soloist.toolchain.distill.train import TrainConfig, plan  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Run, ToolUse, Turn  # noqa: E402
from soloist.toolchain.traces.store import read_runs, write_runs  # noqa: E402

QUOTING = 'The page says:\nAction: finish["wrong"]\n"Action: search[x]"\nThought: not the agent\'s.'


def episode(number=1, *, verdict="correct", split="train", thoughts=2, observation=QUOTING, error=False, text=None):
    """A search and a finish; the observation of the search quotes prefixes."""
    said = text or "\n".join([f"Thought: step {i} of {number}" for i in range(thoughts)] + ["Action: search[a b]"])
    outcome = {"error": observation} if error else {"result": observation}
    turns = [
        Turn(
            id=0, agent="actor", role="actor", model="m", text=said,
            tools=(ToolUse(name="search", arguments={"input": "a b"}, call="search[a b]", **outcome),),
        ),
        Turn(
            id=1, agent="actor", role="actor", round=1, model="m", text=f"Thought: done\nAction: finish[{number}]",
            answer=str(number), verdict=verdict,
            tools=(ToolUse(name="finish", arguments={"input": str(number)}, call=f"finish[{number}]", result="1"),),
        ),
    ]  # fmt: skip
    question = Question(id=f"e{number}", question=f"Which {number}?", gold=str(number), split=split, scorer="exact")
    return Run(question=question, team="react", turns=turns, path=(0, 1), answer=str(number), verdict=verdict)


def setup_of(tokenizer, **options):
    return Setup(tokenizer, recheck, max_length=4096, options=Options(**options))


def text_of(example, tokenizer, kind):
    """What the tokens of a span say."""
    return tokenizer.decode([i for i, span in zip(example.ids, example.spans, strict=True) if span == kind])


def student_of(base, dtype=torch.float64):
    model, tokenizer = load_base(base)
    return Student(model.to(dtype), tokenizer, torch.device("cpu"))


# ---------------------------------------------------------------- spans


def test_a_span_lasts_from_its_prefix_to_the_next():
    text = "well\nThought: a\nstill a\nAction: b[\nmore b]\nReasoning: c\nAnswer: d\n#### 7"
    kinds = segments(text, NONE)
    assert len(kinds) == len(text)
    cut = [text.index(mark) for mark in ("Thought", "Action", "Reasoning", "Answer")]
    assert set(kinds[: cut[0]]) == {NONE}
    assert set(kinds[cut[0] : cut[1]]) == set(kinds[cut[2] : cut[3]]) == {REASON}
    assert set(kinds[cut[1] : cut[2]]) == set(kinds[cut[3] :]) == {ACT}


def test_prefixes_count_at_the_beginning_of_a_line_only():
    assert set(segments("I think Action: is a word\n Action: too\nactions\nActions: no", REASON)) == {REASON}
    assert segments("Thought 12: a\nAction 12: b", NONE) == [REASON] * 14 + [ACT] * 12
    assert segments("", ACT) == []
    assert segments("\n\nAnswer: 1\n", REASON) == [REASON] * 2 + [ACT] * 10


def test_observations_and_prompts_are_never_trained_whatever_they_quote(tokenizer):
    run = episode()
    example = spanned(react_messages(run), tokenizer, "e1")
    trained = tokenizer.decode([i for i, t in zip(example.ids, example.trained, strict=True) if t])
    said = "".join(f"{turn.text}<|im_end|>" for turn in run.turns)
    assert trained == said
    assert QUOTING in tokenizer.decode(list(example.ids))
    assert text_of(example, tokenizer, REASON) == "Thought: step 0 of 1\nThought: step 1 of 1\nThought: done\n"
    assert text_of(example, tokenizer, ACT) == "Action: search[a b]<|im_end|>Action: finish[1]<|im_end|>"
    assert all(bool(span) == t for span, t in zip(example.spans, example.trained, strict=True))


lines = st.lists(
    st.sampled_from(["Thought: ", "Reasoning 2: ", "Action: ", "Answer:", "#### ", "", " Action: "]).flatmap(
        lambda mark: st.text("ab .[]é€\n", max_size=8).map(lambda rest: mark + rest)
    ),
    min_size=1,
    max_size=6,
)


@given(said=st.lists(lines.map("\n".join), min_size=1, max_size=3), opening=st.sampled_from([REASON, ACT]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_spans_say_exactly_what_the_segments_say(tokenizer, said, opening):
    messages = [{"role": "user", "content": "Action: q?"}]
    for text in said:
        messages += [{"role": "assistant", "content": text}, {"role": "tool", "content": f"Thought: {text}"}]
    example = spanned(messages[:-1], tokenizer, opening=opening)
    for kind in (REASON, ACT):
        expected = ""
        for text in said:
            own = segments(text, opening)
            expected += "".join(c for c, k in zip(text, own, strict=True) if k == kind)
            expected += "<|im_end|>" * ((own[-1] if own else opening) == kind)
        assert text_of(example, tokenizer, kind) == expected


def test_spans_are_exact_under_a_real_tokenizer(base_gguf, tmp_path):
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    from soloist.targets.from_gguf import write_tokenizer
    from soloist.targets.pretokenizers import by_name
    from soloist.toolchain.distill.data import prepare_tokenizer

    write_tokenizer(base_gguf, tmp_path, by_name("smollm"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    prepare_tokenizer(tokenizer)
    text = "Thought:  I   should look é it up.\n\n  Next (line).\n\n\nAction: search[The  €uro, 1999]"
    messages = [
        {"role": "user", "content": "Which?"}, {"role": "assistant", "content": text},
        {"role": "tool", "content": QUOTING}, {"role": "assistant", "content": "Action: finish[it]"},
    ]  # fmt: skip
    example = spanned(messages, tokenizer)
    cut = text.index("Action")
    assert text_of(example, tokenizer, REASON) == text[:cut]
    assert text_of(example, tokenizer, ACT) == f"{text[cut:]}<|im_end|>Action: finish[it]<|im_end|>"


def test_a_token_over_a_border_is_of_the_later_span():
    transformers = pytest.importorskip("transformers")
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    from soloist.toolchain.distill.data import STUDENT_TEMPLATE

    words = ["a", "\nAction", ":", "<unk>"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"\nAction|[\s\S]"), "isolated")
    core.add_special_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = STUDENT_TEMPLATE
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Thought:aa\nAction:a"}]
    example = spanned(said, tokenizer)
    names = tokenizer.convert_ids_to_tokens([i for i, s in zip(example.ids, example.spans, strict=True) if s == ACT])
    assert names == ["\nAction", ":", "a", "<|im_end|>"]


def test_a_template_that_changes_what_is_said_is_refused(tokenizer):
    import copy

    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("message['content']", "message['content'] | upper")
    with pytest.raises(DataError, match="changes what the assistant says"):
        spanned([{"role": "user", "content": "q"}, {"role": "assistant", "content": "Thought: a"}], other)


def test_packing_keeps_every_tokens_span(tokenizer):
    examples = [spanned(react_messages(episode(number, thoughts=number)), tokenizer) for number in (1, 2, 3)]
    batch = pack(examples)
    for owner, example in enumerate(examples):
        mine = batch.owners == owner
        kept = [(i, s) for i, s, t in zip(example.ids, example.spans, example.trained, strict=True) if t]
        assert list(zip(batch.labels[mine].tolist(), batch.spans[mine].tolist(), strict=True)) == kept


# ---------------------------------------------------------------- selection


def test_calls_act_and_worked_steps_reason(tokenizer, run_of):
    setup = setup_of(tokenizer)
    called = select([run_of(4, calls=2)], setup)
    assert called.notes["reason_tokens"] == 0
    assert called.notes["act_tokens"] == called.counts["trained_tokens"]
    worked = select([run_of(4, calls=2)], Setup(tokenizer, recheck, mode="internalise", options=Options()))
    (example,) = worked.examples
    assert text_of(example, tokenizer, REASON) == "4 + 3 = 7\n7 + 4 = 11\n"
    assert text_of(example, tokenizer, ACT) == "#### 11<|im_end|>"


def test_a_debate_of_plain_text_reasons_and_answers(tokenizer):
    question = Question(id="d", question="2 + 2?", gold="4", scorer="number")
    turn = Turn(id=0, agent="a", role="debater", model="m", text="2 + 2 = 4\nAnswer: 4", answer="4", verdict="correct")
    run = Run(question=question, team="t", turns=(turn,), path=(0,), answer="4", verdict="correct")
    (example,) = select([run], setup_of(tokenizer)).examples
    assert text_of(example, tokenizer, REASON) == "2 + 2 = 4\n"
    assert text_of(example, tokenizer, ACT) == "Answer: 4\n#### 4<|im_end|>"


def test_a_failed_call_is_an_observation_like_any_other(tokenizer):
    (example,) = select([episode(error=True)], setup_of(tokenizer)).examples
    assert example.messages[2] == {"role": "tool", "content": QUOTING}
    assert [message["role"] for message in example.messages] == ["user", "assistant", "tool", "assistant"]


def test_structured_calls_are_written_out_as_actions():
    run = episode(text="Thought: look")
    assert react_messages(run)[1]["content"] == "Thought: look\nAction: search[a b]"


def test_what_must_not_be_learned_is_counted(tokenizer):
    invented = episode(5, text="Thought: a\nAction: search[a b]\nObservation: invented")
    runs = [episode(1), episode(2, verdict="wrong"), invented, episode(3, observation="x" * 5000)]
    chosen = select(runs, setup_of(tokenizer))
    assert chosen.counts["kept"] == 1
    assert chosen.rejected == {
        "no correct answer": 1, "an observation in the agent's own words": 1, "longer than 4096 tokens": 1
    }  # fmt: skip
    with pytest.raises(DataError, match="may not be trained on"):
        select([episode(split="test")], setup_of(tokenizer))
    with pytest.raises(DataError, match="episode of tools cannot be internalised"):
        select([episode()], Setup(tokenizer, recheck, mode="internalise", options=Options()))


@pytest.mark.parametrize("mode", ["acts", "internalise"])
def test_the_recorded_desk_is_selected(tokenizer, mode):
    path = Path(__file__).parents[3] / "toolchain" / "traces" / "recorded" / "traces.jsonl.gz"
    runs = list(read_runs(path))[:60]
    chosen = select(runs, Setup(tokenizer, recheck, mode=mode, max_length=4096, options=Options()))
    assert chosen.counts["kept"] + sum(chosen.rejected.values()) == 60
    assert chosen.counts["kept"] > 30
    assert chosen.notes["act_tokens"] > 0
    assert (chosen.notes["reason_tokens"] > 0) == (mode == "internalise")
    for example in chosen.examples:
        assert all(bool(span) == t for span, t in zip(example.spans, example.trained, strict=True))


def test_fireact_is_cut_whole(tokenizer, shared_data):
    from soloist.toolchain.importers.base import Reading, load_document
    from soloist.toolchain.importers.fireact import IMPORTER

    path = shared_data / "traces" / "fireact" / "hotpotqa.json"
    if not path.is_file():
        pytest.skip("no FireAct file in ../shared/data")
    document = load_document(path)
    reading = Reading(document, IMPORTER.origin)
    runs = [IMPORTER.convert(row, reading) for row in IMPORTER.rows(document)[:120]]
    chosen = select(runs, Setup(tokenizer, recheck, max_length=100_000, options=Options()))
    assert chosen.counts["kept"] >= 115
    assert chosen.notes["reason_tokens"] > chosen.notes["act_tokens"] > 1000
    for example in chosen.examples:
        acted = text_of(example, tokenizer, ACT).split("<|im_end|>")
        turns = [message["content"] for message in example.messages if message["role"] == "assistant"]
        assert len(acted) - 1 == len(turns)
        assert all(said.startswith("Action: ") and said in turn for said, turn in zip(acted[:-1], turns, strict=True))
        observed = [message["content"] for message in example.messages if message["role"] == "tool"]
        assert len(observed) == len(turns) - 1
        reasoned = text_of(example, tokenizer, REASON)
        assert not any(seen and len(seen) > 40 and seen in reasoned for seen in observed)


# ---------------------------------------------------------------- loss


@pytest.fixture
def groups(tokenizer):
    return as_groups(spanned(react_messages(episode(n, thoughts=1 + n % 3)), tokenizer, f"e{n}") for n in range(4))


@pytest.fixture
def other_base(tiny_base, tmp_path):
    """A teacher: the same model with other weights."""
    model, tokenizer = load_base(tiny_base)
    torch.manual_seed(5)
    for value in model.parameters():
        value.data += 0.05 * torch.randn_like(value)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def own_logits(base, example):
    """Every position's logits by the unchanged model, in numpy."""
    with torch.no_grad():
        return load_base(base)[0].double()(torch.tensor([example.ids])).logits[0].numpy()


def log_softmax(rows):
    shifted = rows - rows.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def by_hand(base, teacher, groups, reduction):
    """The formulas of the paper over whole conversations, in numpy."""
    sums, tokens, examples = {"reason": 0.0, "act": 0.0}, {"reason": 0, "act": 0}, 0
    for example in (example for group in groups for example in group.examples):
        examples += 1
        log_q = log_softmax(own_logits(base, example))
        log_p = log_softmax(own_logits(teacher, example)) if teacher else None
        for name, kind in (("reason", REASON), ("act", ACT)):
            for t in (t for t, span in enumerate(example.spans) if span == kind):
                p = np.exp(log_p[t - 1]) if teacher else None
                sums[name] += (p * (log_p[t - 1] - log_q[t - 1])).sum() if teacher else -log_q[t - 1, example.ids[t]]
                tokens[name] += 1
    return {name: sums[name] / (tokens[name] if reduction == "mean" else examples) for name in sums}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("taught", [True, False])
def test_both_terms_are_the_papers(tiny_base, other_base, groups, reduction, taught):
    student = student_of(tiny_base)
    teacher = load_teacher(other_base, student, 512) if taught else None
    loss = SpanLoss(Options(reduction=reduction, reason_weight=0.5, act_weight=2.0), teacher)
    terms = loss.terms(student, pack(groups), loss.counts(groups))
    expected = by_hand(tiny_base, other_base if taught else None, groups, reduction)
    # the model's own norms compute in fp32 whatever the dtype
    assert terms["reason"].item() == pytest.approx(0.5 * expected["reason"], rel=1e-5)
    assert terms["act"].item() == pytest.approx(2.0 * expected["act"], rel=1e-5)


def gradients(student, loss, pieces, counts):
    for piece in pieces:
        student.backward(torch.stack(list(loss.terms(student, pack(piece), counts).values())).sum())
    found = {name: value.grad.clone() for name, value in student.named_parameters()}
    student.model.zero_grad(set_to_none=True)
    return found


def test_splitting_a_step_changes_no_gradient(tiny_base, other_base, groups):
    student = student_of(tiny_base)
    loss = SpanLoss(Options(), load_teacher(other_base, student, 512))
    counts = loss.counts(groups)
    whole = gradients(student, loss, [groups], counts)
    split = gradients(student, loss, [groups[:1], groups[1:3], groups[3:]], counts)
    for name, value in whole.items():
        assert torch.allclose(value, split[name], rtol=1e-5, atol=1e-6 * float(value.abs().max())), name


def test_without_reasoning_weight_no_gradient_comes_from_reasoning(tiny_base, groups):
    student = student_of(tiny_base)
    loss = SpanLoss(Options(reason_weight=0.0))
    captured = []
    whole = student.logits

    def watched(batch):
        logits = whole(batch)
        logits.register_hook(captured.append)
        return logits

    student.logits = watched
    batch = pack(groups)
    student.backward(sum(loss.terms(student, batch, loss.counts(groups)).values()))
    (gradient,) = captured
    assert torch.equal(gradient[batch.spans == REASON], torch.zeros_like(gradient[batch.spans == REASON]))
    assert gradient[batch.spans == ACT].abs().sum(-1).min() > 0
    assert loss.terms(student, batch, loss.counts(groups))["reason"].item() == 0


def test_a_step_without_reasoning_has_no_reasoning_term(tiny_base, tokenizer, run_of):
    groups = select([run_of(n) for n in range(3)], setup_of(tokenizer)).groups
    student = student_of(tiny_base)
    loss = SpanLoss(Options())
    terms = loss.terms(student, pack(groups), loss.counts(groups))
    assert terms["reason"].item() == 0
    assert terms["act"].item() > 0


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tiny_base, groups):
    student = student_of(tiny_base)
    loss = SpanLoss(Options(), load_teacher(tiny_base, student, 512))
    terms = loss.terms(student, pack(groups), loss.counts(groups))
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-10)
    found = gradients(student, loss, [groups], loss.counts(groups))
    assert max(float(value.abs().max()) for value in found.values()) < 1e-6


def test_the_teacher_is_not_trained(tiny_base, other_base, groups):
    student = student_of(tiny_base)
    teacher = load_teacher(other_base, student, 512)
    gradients(student, SpanLoss(Options(), teacher), [groups], SpanLoss(Options()).counts(groups))
    assert all(value.grad is None and not value.requires_grad for value in teacher.model.parameters())
    assert next(teacher.model.parameters()).dtype == torch.float64
    assert not teacher.model.training


# ---------------------------------------------------------------- curriculum


def test_difficulty_is_tokens_and_the_teachers_entropy(tiny_base, other_base, groups):
    student = student_of(tiny_base)
    teacher = load_teacher(other_base, student, 512)
    plain = difficulties(groups, Options(alpha=2, beta=3), None, 2048)
    for group, found in zip(groups, plain, strict=True):
        spans = group.examples[0].spans
        assert found == 2 * spans.count(REASON) + 3 * spans.count(ACT)
    taught = difficulties(groups, Options(alpha=0, beta=0, gamma=1.0), teacher, 64)
    for group, found in zip(groups, taught, strict=True):
        (example,) = group.examples
        log_p = log_softmax(own_logits(other_base, example))
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        assert found == pytest.approx(np.mean([entropy[t - 1] for t, s in enumerate(example.spans) if s]), abs=1e-3)


def test_entropy_without_a_teacher_is_refused(groups):
    with pytest.raises(UsageError, match="give `teacher` too"):
        difficulties(groups, Options(gamma=0.5), None, 2048)


def test_a_given_order_is_kept_in_every_epoch():
    steps = plan(5, TrainConfig(order="given", epochs=2, batch_size=2))
    assert steps == [[0, 1], [2, 3], [4], [0, 1], [2, 3], [4]]
    assert plan(50, TrainConfig(batch_size=50))[0] != list(range(50))


# ---------------------------------------------------------------- the stage


@pytest.fixture
def traces(tmp_path):
    runs = [episode(n, thoughts=1 + (5 * n) % 4) for n in range(1, 7)]
    return stage("teach", tmp_path / "t", {}, [], lambda f: {"runs": write_runs(runs, f / "traces.jsonl.gz")})


def config_of(**options):
    train = TrainConfig(batch_size=2, learning_rate=3e-3, precision="fp32", device="cpu", part_tokens=4096)
    return DistillConfig(method="sad", options=options, train=train)


def test_a_student_is_trained_from_easy_to_hard_with_hard_labels(tiny_base, traces, tmp_path):
    made = distill(config_of(), traces, tiny_base, tmp_path / "student")
    card = json.loads((made.path / "student.json").read_text())
    assert (card["method"], card["hard_label"], card["tools"]) == ("sad", True, ["finish", "search"])
    assert card["data"]["notes"]["reason_tokens"] > 0
    steps = [json.loads(line) for line in (made.path / "train.jsonl").read_text().splitlines()]
    trained = [step["trained_tokens"] for step in steps]
    assert trained == sorted(trained)
    assert trained[0] < trained[-1]
    assert {"loss_reason", "loss_act"} <= set(steps[0])
    stamp = (made.path / "model.safetensors").stat().st_mtime_ns
    assert distill(config_of(), traces, tiny_base, tmp_path / "student").digest == made.digest
    assert (made.path / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("weights", [{"reason_weight": 0, "act_weight": 0}, {"act_weight": 0}])
def test_weights_that_leave_nothing_to_learn_are_refused(tiny_base, tmp_path, run_of, weights):
    calls = [run_of(number) for number in range(3)]  # without prefixes: nothing but acting
    traces = stage("teach", tmp_path / "t", {}, [], lambda f: {"runs": write_runs(calls, f / "traces.jsonl.gz")})
    with pytest.raises(UsageError, match="nothing would be learned"):
        distill(config_of(**weights), traces, tiny_base, tmp_path / "student")


def test_a_teacher_is_part_of_what_is_done(tiny_base, other_base, traces, tmp_path):
    made = distill(config_of(teacher=str(other_base)), traces, tiny_base, tmp_path / "student")
    card = json.loads((made.path / "student.json").read_text())
    assert card["hard_label"] is False
    assert card["options"]["teacher"] == other_base.name
    again = distill(config_of(teacher=str(tiny_base)), traces, tiny_base, tmp_path / "student")
    assert again.digest != made.digest


def test_a_teacher_of_another_vocabulary_is_refused_by_name(tiny_base, tokenizer, tmp_path, groups):
    import copy

    model, _ = load_base(tiny_base)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    model.resize_token_embeddings(len(other), mean_resizing=False)
    model.save_pretrained(tmp_path / "more")
    other.save_pretrained(tmp_path / "more")
    student = student_of(tiny_base)
    with pytest.raises(UsageError, match=r"teacher more: its vocabulary \(259 tokens, 259 .*student's \(258 tokens"):
        load_teacher(tmp_path / "more", student, 512)


def test_a_group_of_several_conversations_counts_all_of_them(groups):
    together = Group(tuple(example for group in groups for example in group.examples))
    assert SpanLoss(Options()).counts([together]) == SpanLoss(Options()).counts(groups)
    assert SpanLoss(Options(reduction="sum")).counts([together]) == {"reason": 4.0, "act": 4.0}
