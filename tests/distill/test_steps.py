"""Steps of a solution: where they end, and the label each gets."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from soloist.toolchain.desk.tools import desk_tools
from soloist.toolchain.distill.rollouts import Rollout
from soloist.toolchain.distill.stage import recheck
from soloist.toolchain.distill.steps import Labeller, Tried, step_ends
from soloist.toolchain.tasks.base import Question
from soloist.toolchain.traces.schema import ToolUse

QUESTION = Question(id="q", question="Go", gold="14", scorer="number")


def calc(text, result):
    return ToolUse(
        name="calc", arguments={"expression": text}, call=f"calc({text})", result=result, steps=(f"{text} = {result}",)
    )


def texts(example, ends, tokenizer):
    begins = [0, *(end + 1 for end in ends)]
    return [
        tokenizer.decode([example.ids[i] for i in range(b, e + 1) if example.trained[i]])
        for b, e in zip(begins, ends, strict=False)
    ]


def test_steps_are_lines_and_calls(tokenizer, example_of):
    lines = example_of("3 + 4 = 7\n\n  \n7 * 2 = 14\n#### 14")
    ends = step_ends(lines.ids, lines.trained, tokenizer)
    assert texts(lines, ends, tokenizer) == ["3 + 4 = 7\n", "\n  \n7 * 2 = 14\n", "#### 14<|im_end|>"]
    calls = example_of("add(3 | 4) then", "add(7 | 1)", results=["7\n7"])
    ends = step_ends(calls.ids, calls.trained, tokenizer)
    assert texts(calls, ends, tokenizer) == ["add(3 | 4) then<|im_end|>", "add(7 | 1)<|im_end|>"]
    assert all(calls.trained[end] for end in ends)
    closed = example_of("7\n")
    assert len(step_ends(closed.ids, closed.trained, tokenizer)) == 1


class Scripted:
    """Stands for a sampler: remembers the prompts, answers by a rule."""

    def __init__(self, tokenizer, rule):
        self.tokenizer, self.rule, self.prompts = tokenizer, rule, []

    def roll(self, prompts):
        self.prompts += [self.tokenizer.decode(list(prompt)) for prompt in prompts]
        return [Rollout(answer=self.rule(index)) for index in range(len(prompts))]


def test_labels_by_recheck_answer_and_rollouts(tokenizer, example_of):
    right = Tried(QUESTION, example_of("3 + 4 = 7\n7 * 2 = 14\n#### 14"), True)
    wrong = Tried(QUESTION, example_of("3 + 4 = 7\n7 * 2 = 15\n#### 15"), False)
    sampler = Scripted(tokenizer, lambda index: "14" if index % 4 else "13")
    labeller = Labeller(tokenizer, recheck, sampler=sampler, rollouts=4)
    assert labeller.label([right, wrong]) == [[0.75, 0.75, 1.0], [0.75, 0.0, 0.0]]
    assert labeller.counts == {"rollouts": 3, "answer": 2, "rechecked": 1}
    prompt = "<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n3 + 4 = 7\n"
    assert sampler.prompts == [prompt] * 4 + [prompt + "7 * 2 = 14\n"] * 4  # the shared first step only once
    assert labeller.label([right]) == [[0.75, 0.75, 1.0]]
    assert sampler.prompts[8:] == sampler.prompts[:8], "as after a kill: nothing is known from an earlier part"
    hard = Labeller(tokenizer, recheck, sampler=Scripted(tokenizer, lambda i: "14" if i == 0 else None), hard=True)
    assert hard.label([right]) == [[1.0, 0.0, 1.0]]


def test_without_rollouts_the_answer_is_propagated_and_counted(tokenizer, example_of):
    labeller = Labeller(tokenizer, recheck)
    wrong = Tried(QUESTION, example_of("3 + 4 = 7\n7 + 7 = 15\n#### 15"), False)
    right = Tried(QUESTION, example_of("a\n#### 14"), True)
    assert labeller.label([wrong, right]) == [[0.0, 0.0, 0.0], [1.0, 1.0]]
    assert labeller.counts == {"propagated": 2, "rechecked": 1, "answer": 2}


def test_calls_are_checked_by_their_tool_and_sampled_on_with_their_result(tokenizer, example_of):
    uses = (calc("3 + 4", "7"), calc("7 * 2", "14"))
    example = example_of("calc(3 + 4) then", "calc(7 * 2)", results=["7"])
    sampler = Scripted(tokenizer, lambda index: "14")
    labeller = Labeller(tokenizer, recheck, desk_tools(), sampler, 2)
    assert labeller.label([Tried(QUESTION, example, True, uses)]) == [[1.0, 1.0]]
    assert sampler.prompts[0].endswith("<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n")
    lying = (calc("3 + 4", "8").model_copy(update={"steps": ()}), uses[1])  # only the tool's own check can tell
    assert labeller.label([Tried(QUESTION, example, True, lying)]) == [[0.0, 1.0]]
    failed = (uses[0], ToolUse(name="calc", arguments={}, call="calc(7 * )", error="no"))
    assert labeller.label([Tried(QUESTION, example, False, failed)]) == [[1.0, 0.0]]
    wrapped = example_of("calc(3 +\n4) then", "calc(7 * 2)", results=["7"])  # two steps, one call
    assert labeller.label([Tried(QUESTION, wrapped, True, lying)]) == [[0.0, 0.0, 1.0]]
