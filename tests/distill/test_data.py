"""Masks token by token, both modes, and what rejection sampling lets through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from soloist.kernels.errors import DataError
from soloist.toolchain.distill.data import (
    STUDENT_TEMPLATE,
    conversation,
    encode,
    prepare_tokenizer,
    render_ids,
    select,
    selection,
    within,
)
from soloist.toolchain.traces.schema import Run, Turn


def agree(_steps):
    return True


def said(example, tokenizer):
    """The trained tokens as text, spans separated by a bar."""
    spans, open_span = [], False
    for token, trained in zip(example.ids, example.trained, strict=True):
        if trained:
            spans = [*spans, []] if not open_span else spans
            spans[-1].append(token)
        open_span = trained
    return [tokenizer.decode(span) for span in spans]


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "2 + 3, doubled?"},
    {"role": "assistant", "content": "add(2 | 3) then"},
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "double(5)"},
]
PIECES = [
    ("<|im_start|>system\nBe brief.<|im_end|>\n", False),
    ("<|im_start|>user\n2 + 3, doubled?<|im_end|>\n<|im_start|>assistant\n", False),
    ("add(2 | 3) then<|im_end|>", True),
    ("\n<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\n", False),
    ("double(5)<|im_end|>", True),
]


def check_mask(tokenizer):
    example = encode(TALK, tokenizer)
    ids, trained = [], []
    for text, mark in PIECES:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += piece
        trained += [mark] * len(piece)
    assert list(example.ids) == ids
    assert list(example.trained) == trained


def test_mask_marks_own_words_and_end_tokens_only(tokenizer):
    check_mask(tokenizer)


@pytest.mark.filterwarnings("ignore")  # transformers' GGUF reader warns about its own deprecations
def test_mask_is_right_with_the_real_tokenizer(base_gguf):
    transformers = pytest.importorskip("transformers")
    real = transformers.AutoTokenizer.from_pretrained(str(base_gguf.parent), gguf_file=base_gguf.name)
    prepare_tokenizer(real)
    assert real.chat_template == STUDENT_TEMPLATE
    assert len(render_ids(real, [{"role": "user", "content": "Hi"}], prompt=True)) == 10
    check_mask(real)


def test_acts_asks_for_more_until_the_last_call(tokenizer, run_of):
    chosen = select([run_of(4, calls=3)], tokenizer, check_steps=agree)
    roles = [message["role"] for message in chosen.examples[0].messages]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert said(chosen.examples[0], tokenizer) == [
        "add(4 | 3) then<|im_end|>",
        "add(7 | 4) then<|im_end|>",
        "add(11 | 5)<|im_end|>",
    ]


def test_cot_is_the_worked_steps_then_the_answer(tokenizer, run_of):
    chosen = select([run_of(4, calls=2)], tokenizer, check_steps=agree, mode="cot")
    assert said(chosen.examples[0], tokenizer) == ["4 + 3 = 7\n7 + 4 = 11\n#### 11<|im_end|>"]


@pytest.mark.parametrize("mode", ["tools", "cot"])
def test_a_run_without_tools_teaches_its_text(run_of, mode):
    run = run_of(4)
    turn = Turn(id=0, agent="a", role="solver", text="4 plus 3 is 7.\nThe answer is 7")
    run = Run(question=run.question, team="t", turns=(turn,), path=(0,), answer="7", verdict="correct")
    assert conversation(run, mode)[1]["content"] == "4 plus 3 is 7.\nThe answer is 7\n#### 7"


def test_rejection_counts_each_reason(tokenizer, run_of):
    misses = run_of(8)
    misses = misses.model_copy(update={"question": misses.question.model_copy(update={"gold": "99"})})
    runs = [run_of(1), run_of(2), run_of(3, verdict="wrong"), run_of(4, verdict="unknown"), run_of(5), misses]
    chosen = select(runs, tokenizer, check_steps=lambda steps: "5 + 3 = 8" not in steps)
    assert chosen.counts.kept == 2
    assert chosen.counts.rejected == {
        "no correct answer": 2,
        "a worked step does not re-check": 1,
        "the last tool's result is not the answer": 1,
    }
    assert chosen.counts.trained_tokens == sum(e.targets for e in chosen.examples)


def test_long_conversations_are_left_out_and_counted(tokenizer, run_of):
    chosen = select([run_of(1), run_of(2, calls=9)], tokenizer, check_steps=agree, max_length=100)
    assert chosen.rejected == {"longer than 100 tokens": 1}


@pytest.mark.parametrize("split", ["held-out", "unseen-wording", "test"])
def test_held_out_questions_are_refused(tokenizer, run_of, split):
    with pytest.raises(DataError, match=f"q2: split '{split}' may not be trained on"):
        select([run_of(1), run_of(2, split=split)], tokenizer, check_steps=agree)


def test_no_correct_trace_is_an_error(tokenizer, run_of):
    with pytest.raises(DataError, match=r"no trace to learn from \(2 x no correct answer\)"):
        select([run_of(1, verdict="wrong"), run_of(2, verdict="absent")], tokenizer, check_steps=agree)
    with pytest.raises(DataError, match="there are no traces"):
        select([], tokenizer, check_steps=agree)


def test_a_budget_of_tokens_takes_whole_groups_at_random(tokenizer, run_of):
    chosen = select([run_of(number, calls=1 + number % 3) for number in range(30)], tokenizer, check_steps=agree)
    sizes = [group.examples[0].targets for group in chosen.groups]
    assert within(chosen, None, 0) is chosen is within(chosen, sum(sizes), 0)
    for budget in (min(sizes), 200, sum(sizes) - 1):
        cut = within(chosen, budget, seed=3)
        used = sum(example.targets for example in cut.examples)
        left_out = [group.examples[0].targets for group in chosen.groups if group not in cut.groups]
        assert budget - min(left_out) < used <= budget, "nothing more fits"
        assert list(cut.groups) == [group for group in chosen.groups if group in cut.groups], "in their order"
        assert cut.rejected == {f"over the budget of {budget} trained tokens": 30 - len(cut.groups)}
    assert within(chosen, 200, seed=3).groups == within(chosen, 200, seed=3).groups
    assert within(chosen, 200, seed=3).groups != within(chosen, 200, seed=4).groups
    with pytest.raises(DataError, match=f"a budget of 3 trained tokens is too small.* has {min(sizes)}"):
        within(chosen, 3, seed=0)


def test_notes_are_counted_only_where_there_are_any(tokenizer, run_of):
    kept = select([run_of(1)], tokenizer, check_steps=agree).groups
    assert selection(kept, {}).counts.notes == {}
    assert selection(kept, {}, {"mean_k": 1.5}).counts.notes == {"mean_k": 1.5}


class Alien:
    """A tokenizer of characters whose template can be made to misbehave."""

    eos_token, eos_token_id = "$", ord("$")

    def __init__(self, render):
        self.render = render

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return self.render(messages, add_generation_prompt)

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(letter) for letter in text]}


def test_a_template_that_rewrites_the_past_is_refused():
    def render(messages, prompt):
        return f"[{len(messages)}]" + "".join(m["content"] + "$" for m in messages) + (">" if prompt else "")

    with pytest.raises(DataError, match="not the beginning of the whole conversation"):
        encode(TALK, Alien(render))


def test_a_template_without_end_token_is_refused():
    def render(messages, prompt):
        return "".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + ("<a>" if prompt else "")

    with pytest.raises(DataError, match="does not end with the end token"):
        encode(TALK, Alien(render))


def test_another_family_keeps_its_template():
    other = SimpleNamespace(
        get_vocab=lambda: {"<s>": 0}, chat_template="theirs", eos_token="</s>", pad_token_id=None, pad_token=None
    )
    prepare_tokenizer(other)
    assert (other.chat_template, other.eos_token, other.pad_token) == ("theirs", "</s>", "</s>")
