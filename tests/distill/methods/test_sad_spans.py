"""SAD's spans: exact, observations never trained, what is selected; FireAct's real episodes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from soloist.kernels.errors import DataError  # noqa: E402
from soloist.toolchain.distill.methods.sad import (  # noqa: E402
    ACT,
    NONE,
    REASON,
    Options,
    react_messages,
    segments,
    select,
    spanned,
)
from soloist.toolchain.distill.packing import pack  # noqa: E402
from soloist.toolchain.distill.stage import recheck  # noqa: E402
from soloist.toolchain.distill.work import Setup  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402
from soloist.toolchain.traces.schema import Run, Turn  # noqa: E402


def setup_of(tokenizer, **options):
    return Setup(tokenizer, recheck, max_length=4096, options=Options(**options))


def text_of(example, tokenizer, kind):
    """What the tokens of a span say."""
    return tokenizer.decode([i for i, span in zip(example.ids, example.spans, strict=True) if span == kind])


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


def test_observations_and_prompts_are_never_trained_whatever_they_quote(tokenizer, episode_of):
    run = episode_of()
    example = spanned(react_messages(run), tokenizer, "e1")
    trained = tokenizer.decode([i for i, t in zip(example.ids, example.trained, strict=True) if t])
    said = "".join(f"{turn.text}<|im_end|>" for turn in run.turns)
    assert trained == said
    assert run.turns[0].tools[0].result in tokenizer.decode(list(example.ids))
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


def test_spans_are_exact_under_a_real_tokenizer(tiny_smollm2):
    transformers = pytest.importorskip("transformers")
    from soloist.toolchain.distill.data import prepare_tokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tiny_smollm2))
    prepare_tokenizer(tokenizer)
    text = "Thought:  I   should look é it up.\n\n  Next (line).\n\n\nAction: search[The  €uro, 1999]"
    messages = [
        {"role": "user", "content": "Which?"},
        {"role": "assistant", "content": text},
        {"role": "tool", "content": "Thought: a page's."},
        {"role": "assistant", "content": "Action: finish[it]"},
    ]
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
    with pytest.raises(DataError, match="changes the assistant's text"):
        spanned([{"role": "user", "content": "q"}, {"role": "assistant", "content": "Thought: a"}], other)


def test_packing_keeps_every_tokens_span(tokenizer, episode_of):
    examples = [spanned(react_messages(episode_of(number, thoughts=number)), tokenizer) for number in (1, 2, 3)]
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
    assert called.notes["act_tokens"] == called.counts.trained_tokens
    worked = select([run_of(4, calls=2)], Setup(tokenizer, recheck, mode="cot", options=Options()))
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


def test_a_failed_call_is_an_observation_like_any_other(tokenizer, episode_of):
    run = episode_of(error=True)
    (example,) = select([run], setup_of(tokenizer)).examples
    assert example.messages[2] == {"role": "tool", "content": run.turns[0].tools[0].error}
    assert [message["role"] for message in example.messages] == ["user", "assistant", "tool", "assistant"]


def test_structured_calls_are_written_out_as_actions(episode_of):
    run = episode_of(text="Thought: look")
    assert react_messages(run)[1]["content"] == "Thought: look\nAction: search[a b]"


def test_what_must_not_be_learned_is_counted(tokenizer, episode_of):
    invented = episode_of(5, text="Thought: a\nAction: search[a b]\nObservation: invented")
    runs = [episode_of(1), episode_of(2, verdict="wrong"), invented, episode_of(3, observation="x" * 5000)]
    chosen = select(runs, setup_of(tokenizer))
    assert chosen.counts.kept == 1
    assert chosen.rejected == {
        "no correct answer": 1,
        "an observation in the agent's own words": 1,
        "longer than 4096 tokens": 1,
    }
    with pytest.raises(DataError, match="may not be trained on"):
        select([episode_of(split="test")], setup_of(tokenizer))
    with pytest.raises(DataError, match="episode of tools has no answer in words"):
        select([episode_of()], Setup(tokenizer, recheck, mode="cot", options=Options()))


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_the_recorded_desk_is_selected(tokenizer, mode, recorded_runs):
    chosen = select(recorded_runs, Setup(tokenizer, recheck, mode=mode, max_length=4096, options=Options()))
    assert chosen.counts.kept + sum(chosen.rejected.values()) == 60
    assert chosen.counts.kept > 30
    assert chosen.notes["act_tokens"] > 0
    assert (chosen.notes["reason_tokens"] > 0) == (mode == "cot")
    for example in chosen.examples:
        assert all(bool(span) == t for span, t in zip(example.spans, example.trained, strict=True))


def test_fireact_is_cut_whole(tokenizer, shared_data):
    from soloist.toolchain.record.importers.base import Reading, load_document
    from soloist.toolchain.record.importers.fireact import IMPORTER

    path = shared_data / "traces" / "fireact" / "hotpotqa.json"
    if not path.is_file():
        pytest.skip("no FireAct file in ../shared/data")
    document = load_document(path)
    reading = Reading(document, IMPORTER.origin)
    runs = [IMPORTER.convert(row, reading) for row in IMPORTER.rows(document)[:120]]
    chosen = select(runs, Setup(tokenizer, recheck, max_length=100_000, options=Options()))
    assert chosen.counts.kept >= 115
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
