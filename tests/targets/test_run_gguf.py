"""The in-process GGUF runtime: caches that change nothing but the time, grammars that hold, files that are refused."""

from __future__ import annotations

import json
import random
import re
import shutil

import numpy as np
import pytest

from soloist.kernels.errors import ArtifactError, EngineError
from soloist.targets.base import Sampling
from soloist.targets.run_gguf import GgufRuntime, Request

SHORT = Sampling(max_tokens=12)
PROMPTS = [
    "What is 2 + 3?",
    "Name a color.",
    "Write a word that rhymes with cat.",
    "What is the capital of France?",
    "Count to four.",
    "What is 12 * 12?",
]


def messages(text, system="You are brief."):
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


@pytest.fixture(scope="module")
def open_base(base_gguf):
    """Open the base model with small contexts; everything is closed at the end."""
    opened = []

    def make(**options):
        opened.append(GgufRuntime(base_gguf, threads=1, **{"context": 256} | options))
        return opened[-1]

    yield make
    for runtime in opened:
        runtime.close()


@pytest.fixture(scope="module")
def one(open_base):
    """A runtime with one slot."""
    return open_base(slots=1)


@pytest.fixture(scope="module")
def alone(open_base):
    """Greedy texts of all prompts, each computed by a runtime that holds nothing."""
    runtime = open_base(slots=1)
    texts = []
    for prompt in PROMPTS:
        runtime.chat(messages("x", system=prompt), Sampling(max_tokens=1))  # what it holds shares no prompt
        texts.append(runtime.chat(messages(prompt), SHORT).text)
    return texts


def test_second_call_computes_only_what_is_new(open_base):
    runtime = open_base(slots=2)
    first = runtime.chat(messages(PROMPTS[0]), SHORT)
    again = runtime.chat(messages(PROMPTS[0]), SHORT)
    other = runtime.chat(messages("What is 2 + 4?"), SHORT)
    assert first.tokens_cached == 0
    assert again.tokens_cached == again.tokens_in - 1
    assert 0.5 * other.tokens_in < other.tokens_cached < other.tokens_in
    assert first.text == again.text
    assert first.tokens_in == again.tokens_in == other.tokens_in
    assert first.start < first.first_token < first.end
    assert first.tokens_out <= 12


def test_conversation_goes_on_from_the_cache_with_the_same_text(open_base, one):
    long = open_base(slots=1)
    history = messages(PROMPTS[3])
    reply = long.chat(history, SHORT)
    history += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": "And of Spain?"}]
    cached = long.chat(history, SHORT)
    one.chat(messages("x", system="y"), Sampling(max_tokens=1))
    fresh = one.chat(history, SHORT)
    assert cached.tokens_cached > reply.tokens_in > fresh.tokens_cached
    assert cached.text == fresh.text


@pytest.mark.parametrize("slots", [8, 6, 3, 2, 1])
def test_batch_says_what_single_calls_say_whatever_the_number_of_slots(open_base, alone, slots):
    runtime = open_base(slots=slots)
    for _ in range(2):  # the second time from caches, or from slots that were given away in between
        replies = runtime.chat_many([Request(messages(prompt), SHORT) for prompt in PROMPTS])
        assert [reply.text for reply in replies] == alone
    if slots >= len(PROMPTS):
        assert all(reply.tokens_cached == reply.tokens_in - 1 for reply in replies)


def test_slots_given_away_in_any_order_never_change_an_answer(open_base, alone):
    runtime, dice = open_base(slots=3), random.Random(0)
    for _ in range(6):
        chosen = dice.choices(range(len(PROMPTS)), k=dice.randint(1, 4))
        replies = runtime.chat_many([Request(messages(PROMPTS[i]), Sampling(max_tokens=5)) for i in chosen])
        assert all(alone[i].startswith(reply.text) for i, reply in zip(chosen, replies, strict=True))


def test_same_prompt_many_times_in_one_batch(open_base, alone):
    replies = open_base(slots=4).chat_many([Request(messages(PROMPTS[0]), SHORT)] * 4)
    assert [reply.text for reply in replies] == [alone[0]] * 4


@pytest.mark.parametrize("seed", range(4))
def test_grammar_is_obeyed(one, seed):
    dice = random.Random(seed)
    words = ["".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=dice.randint(2, 6))) for _ in range(3)]
    rules = f'root ::= ({" | ".join(map(chr(34).__add__, (w + chr(34) for w in words)))}) "(" [0-9] [0-9]? ")"\n'
    for temperature in (0.0, 1.5):
        sampling = Sampling(temperature=temperature, seed=seed, max_tokens=32)
        reply = one.chat(messages(PROMPTS[0]), sampling, grammar=rules)
        assert re.fullmatch(rf"({'|'.join(words)})\([0-9]{{1,2}}\)", reply.text), reply.text
        assert reply.finish == "stop"


def test_grammars_of_one_batch_do_not_mix(open_base):
    rules = ['root ::= "yes" | "no"\n', None, "root ::= [0-9] [0-9]\n"]
    replies = open_base(slots=3).chat_many([Request(messages(PROMPTS[1]), SHORT, grammar) for grammar in rules])
    assert replies[0].text in ("yes", "no")
    assert re.fullmatch("[0-9]{2}", replies[2].text)
    assert not re.fullmatch("yes|no|[0-9]{2}", replies[1].text)


def test_grammar_that_is_none_is_one_error_and_the_runtime_lives_on(one):
    before = one.chat(messages(PROMPTS[0]), SHORT).text
    with pytest.raises(EngineError, match="cannot read the grammar"):
        one.chat(messages(PROMPTS[0]), SHORT, grammar="root ::= (")
    assert one.chat(messages(PROMPTS[0]), SHORT).text == before


def test_reply_stops_at_the_stop_string_and_leaves_it_out(one, alone):
    stop = alone[3][4:7]
    reply = one.chat(messages(PROMPTS[3]), Sampling(max_tokens=12, stop=("never said", stop)))
    assert reply.text == alone[3].split(stop)[0]
    assert reply.finish == "stop"
    assert reply.tokens_out < 12


@pytest.mark.parametrize("limit", [1, 3])
def test_reply_of_full_length_says_so(one, limit):
    reply = one.chat(messages("Tell me a long story."), Sampling(max_tokens=limit))
    assert (reply.tokens_out, reply.finish) == (limit, "length")
    assert (reply.first_token == reply.end) is (limit == 1)


def test_reply_ends_where_the_context_ends(open_base):
    runtime = open_base(slots=2, context=64)
    reply = runtime.chat(messages("Tell me a long story."), Sampling(max_tokens=500))
    assert reply.finish == "length"
    assert 60 <= reply.tokens_in + reply.tokens_out <= 64
    assert runtime.chat(messages("Tell me a long story."), Sampling(max_tokens=500)).text == reply.text


def test_prompt_longer_than_the_context_is_refused_and_the_runtime_lives_on(open_base, alone):
    runtime = open_base(slots=1, context=64)
    with pytest.raises(EngineError, match=r"a prompt of \d+ tokens does not fit the context of 64"):
        runtime.chat(messages("word " * 100), SHORT)
    assert runtime.chat(messages(PROMPTS[0]), SHORT).text == alone[0]


def test_seed_repeats_at_a_temperature_and_others_differ(one):
    def draw(seed):
        return one.chat(messages("Tell me a story."), Sampling(temperature=1.2, max_tokens=10, seed=seed)).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(1, 5)}) > 1


def test_text_is_shown_as_it_comes(one):
    shown = []
    reply = one.chat(messages("Say: naïve café"), Sampling(max_tokens=12), on_text=shown.append)
    assert "".join(shown) == reply.text
    assert len(shown) > 1


def test_logits_agree_with_what_is_said_and_leave_the_cache_right(one, alone):
    tokens = one.tokenize(one.render(messages(PROMPTS[0])))
    logits = one.logits(tokens)
    assert logits.shape[0] == len(tokens)
    assert logits.dtype == np.float32
    reply = one.chat(messages(PROMPTS[0]), SHORT)
    assert reply.text == alone[0]
    assert one.tokenize(reply.text)[0] == logits[-1].argmax()


def test_render_and_tokenize_follow_the_files_chat_template(one):
    text = one.render(messages("Hi", system="Sys"))
    assert text == "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert one.tokenize("<|im_start|>") == [1]
    assert len(one.tokenize("<|im_start|>user")) == 2


DECOMPOSED = (
    "cafe\u0301",
    "A\u030angstro\u0308m\u0323\u0307",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\u212a \u2126 \u037e",
    "<|im_start|>user\ncafe\u0301<|im_end|>\u0338\n",
    "<\u0338|im_end|>e\u0301",
)


@pytest.fixture(scope="module")
def normalizing(tiny, tmp_path_factory):
    """A student whose tokenizer normalizes, and what writes it as GGUF with another word for how."""
    pytest.importorskip("gguf")
    from soloist.targets import gguf_tokenizer
    from soloist.targets.to_gguf import compile_gguf

    student = shutil.copytree(tiny, tmp_path_factory.mktemp("normalizing") / "student")
    content = json.loads((student / "tokenizer.json").read_text(encoding="utf-8"))
    (student / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "NFC"}}), encoding="utf-8")

    def write(out, key=gguf_tokenizer.NORMALIZER, form="NFC"):
        file = out / compile_gguf(student, out, "F16", "Tiny")["file"]
        data = file.read_bytes().replace(gguf_tokenizer.NORMALIZER.encode(), key.encode())
        file.write_bytes(data.replace(b"\x03" + bytes(7) + b"NFC", b"\x03" + bytes(7) + form.encode()))
        return file

    return student, write


def test_text_is_normalized_as_the_students_tokenizer_does_it(normalizing, tmp_path):
    import tokenizers

    student, write = normalizing
    reference = tokenizers.Tokenizer.from_file(str(student / "tokenizer.json"))
    runtime = GgufRuntime(write(tmp_path), threads=1, context=128)
    plain = GgufRuntime(write(tmp_path / "plain", key="soloist.tokenizer.normalized"), threads=1)
    for text in (*DECOMPOSED, "café", "plain <|im_end|>", ""):
        ids = reference.encode(text, add_special_tokens=False).ids
        assert runtime.tokenize(text) == ids, ascii(text)
        assert (plain.tokenize(text) == ids) is (text not in DECOMPOSED), ascii(text)
    asked, composed = ([{"role": "user", "content": text}] for text in ("cafe\u0301 a\u0300", "caf\u00e9 \u00e0"))
    first, again = (runtime.chat(messages, Sampling(max_tokens=4)) for messages in (asked, composed))
    assert (first.text, first.tokens_in) == (again.text, again.tokens_in)
    assert again.tokens_cached == again.tokens_in - 1
    for opened in (runtime, plain):
        opened.close()


def test_text_that_is_normalized_in_an_unknown_way_is_refused(normalizing, tmp_path):
    with pytest.raises(ArtifactError, match="normalizes text by 'NFZ', this version by NFC; update Soloist"):
        GgufRuntime(normalizing[1](tmp_path, form="NFZ"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, base: None, "no such model file"),
        (lambda path, base: path.mkdir(), "no such model file"),
        (lambda path, base: path.write_bytes(b""), "not a GGUF file"),
        (lambda path, base: path.write_bytes(b"PK\x03\x04" + bytes(100)), "not a GGUF file"),
        (lambda path, base: path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(99)), "GGUF version 9"),
        (lambda path, base: path.write_bytes(base.read_bytes()[:24]), "llama.cpp cannot load"),
        (lambda path, base: path.write_bytes(base.read_bytes()[:5_000_000]), "llama.cpp cannot load"),
        (lambda path, base: path.write_bytes(base.read_bytes()[:-5000]), "llama.cpp cannot load"),
    ],
    ids=["missing", "folder", "empty", "zip", "future", "head only", "cut in the middle", "cut at the end"],
)
def test_file_that_is_no_model_is_refused_by_name(base_gguf, tmp_path, make, message):
    path = tmp_path / "model.gguf"
    make(path, base_gguf)
    with pytest.raises(ArtifactError) as caught:
        GgufRuntime(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert message in text
    assert "\n" not in text
