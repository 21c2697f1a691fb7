"""Completions sampled from a student: its calls are made, its limits kept, the same seed says the same."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from soloist.toolchain.desk.tools import desk_tools  # noqa: E402
from soloist.toolchain.distill.model import load_base  # noqa: E402
from soloist.toolchain.distill.rollouts import Sampler, read_tokens  # noqa: E402
from soloist.toolchain.distill.sampling import complete  # noqa: E402
from soloist.toolchain.tasks.base import Question  # noqa: E402

QUESTION = Question(id="q", question="Go", gold="14", scorer="number")


def test_a_student_with_tools_calls_them_and_reads_their_results(tokenizer, monkeypatch, example_of):
    lines = iter([["calc(3 + 4) then", "calc(1 + 1)", "nonsense"], ["calc(7 * 2)"]])
    seen = []

    def generate(self, prompts):
        seen.append([tokenizer.decode(prompt) for prompt in prompts])
        return [tokenizer(text + "<|im_end|>")["input_ids"] for text in next(lines)]

    monkeypatch.setattr(Sampler, "_generate", generate)
    example = example_of("calc(3 + 4) then", "calc(7 * 2)", results=["7"])
    start = example.trained.index(True)
    made = Sampler(None, tokenizer, desk_tools()).roll([example.ids[:start]] * 3)
    assert [one.answer for one in made] == ["14", "2", None]
    assert made[0].right(QUESTION)
    assert not made[1].right(QUESTION)
    assert tuple(made[0].ids) == example.ids[start:]  # token for token what training renders
    assert tuple(made[0].own) == example.trained[start:]
    assert seen[1] == [tokenizer.decode(example.ids[: start + len(made[0].ids) - len("calc(7 * 2)") - 1])]
    assert tokenizer.decode(read_tokens(tokenizer, "7")) == ("\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n")


def test_an_endless_chain_has_no_answer(tokenizer, monkeypatch):
    again = tokenizer("calc(1 + 1) then<|im_end|>")["input_ids"]
    monkeypatch.setattr(Sampler, "_generate", lambda self, prompts: [again for _ in prompts])
    (made,) = Sampler(None, tokenizer, desk_tools(), max_calls=3).roll([[1, 2]])
    assert made.answer is None
    assert made.ids.count(tokenizer.eos_token_id) >= 3


def test_an_announced_call_that_has_no_room_leaves_no_answer(tokenizer, monkeypatch):
    again = tokenizer("calc(7 * 2) then<|im_end|>")["input_ids"]
    monkeypatch.setattr(Sampler, "_generate", lambda self, prompts: [again for _ in prompts])
    (made,) = Sampler(None, tokenizer, desk_tools(), limit=len(again) + 3).roll([[1, 2]])
    assert made.ids.count(tokenizer.eos_token_id) == 2, "the call and its result"
    assert made.answer is None
    assert not made.right(QUESTION)


def test_of_words_only_the_final_answer_is_scored(tokenizer, monkeypatch):
    reply = tokenizer("(B) looks right at first.\nThe answer is (C)<|im_end|>")["input_ids"]
    monkeypatch.setattr(Sampler, "_generate", lambda self, prompts: [reply])
    (made,) = Sampler(None, tokenizer).roll([[1, 2]])
    letters = [Question(id="q", question="Which?", gold=gold, scorer="choice") for gold in "ABC"]
    assert [made.right(question) for question in letters] == [False, False, True]


def test_a_base_models_own_settings_of_generation_are_switched_off(tiny_base, tokenizer):
    model = load_base(tiny_base)[0].eval()
    prompts, rooms = [list(range(3, 20))] * 4, [12] * 4

    def draw(temperature):
        torch.manual_seed(3)
        return complete(model, tokenizer, prompts, rooms, temperature)

    before = draw(0.0), draw(1.0)
    assert any(len(set(row)) < len(row) for row in before[0]), "something repeats"
    for name, value in {"repetition_penalty": 50.0, "min_p": 0.9, "top_k": 1, "no_repeat_ngram_size": 1}.items():
        setattr(model.generation_config, name, value)
    assert (draw(0.0), draw(1.0)) == before


def test_who_has_finished_leaves_the_batch(tokenizer, monkeypatch):
    end, batches = tokenizer.eos_token_id, []
    script = {11: [5, 6, 7, end], 12: [8] * 30, 13: [9] * 12 + [end], 14: [end]}

    class Talker:
        config = type("Config", (), {"max_position_embeddings": 50})

        def parameters(self):
            return iter([torch.zeros(1)])

        def batch_select_indices(self, rows):
            batches.append(rows.tolist())

        def generate(self, input_ids, attention_mask, generation_config, past_key_values=None):
            assert (past_key_values is self) == (input_ids.shape[1] > 1), "nothing is read twice"
            assert attention_mask.all()
            new = [(script[row[0]][len(row) - 1 :] + [end] * 99)[:8] for row in input_ids.tolist()]
            new = torch.tensor(new)[:, : generation_config.max_new_tokens]
            return type("Made", (), {"sequences": torch.cat([input_ids, new], 1), "past_key_values": self})

    monkeypatch.setattr("soloist.toolchain.distill.sampling._AT_ONCE", 8)
    completions = complete(Talker(), tokenizer, [[11], [12], [13], [14]], [20, 26, 20, 5], 0.0)
    assert completions == [script[11], [8] * 26, script[13], [end]]
    assert batches == [[1, 2], [0], [0]], "rows of the batch before that go on"


def test_leaving_the_batch_changes_no_word(tiny_base, tokenizer, monkeypatch):
    model = load_base(tiny_base)[0].eval()
    prompts = [list(range(3, 20)), list(range(5)), list(range(60)), list(range(9, 30))]
    rooms, found = [40, 7, 25, 3], []
    for at_once in (1, 4, 99):
        monkeypatch.setattr("soloist.toolchain.distill.sampling._AT_ONCE", at_once)
        found.append(complete(model, tokenizer, prompts, rooms, 0.0))
    assert found[0] == found[1] == found[2]
    for row, room in zip(found[0], rooms, strict=True):
        assert len(row) == room or row[-1] == tokenizer.eos_token_id


def test_sampling_is_repeatable_and_stops_at_its_limits(tiny_base, tokenizer):
    model = load_base(tiny_base)[0].eval()
    sampler = Sampler(model, tokenizer, None, 1.0, new_tokens=5, limit=40)
    prompts = [list(range(3, 20)), list(range(5)), list(range(60))]
    torch.manual_seed(3)
    one = sampler.roll(prompts)
    torch.manual_seed(3)
    assert [r.ids for r in sampler.roll(prompts)] == [r.ids for r in one]
    assert [len(r.ids) <= most for r, most in zip(one, (5, 5, 1), strict=True)] == [True] * 3
    assert all(r.ids for r in one), "TRL knows no empty completion, so the prompt over the limit gets one token"
    assert max(len(r.ids) for r in one[:2]) > 1, "and leaves the others their room"
    alone = Sampler(model, tokenizer, None, 1e-4, new_tokens=5, limit=40)  # left padding changes nothing
    assert alone.roll([prompts[1]])[0].ids == alone.roll(prompts[:2])[1].ids
