import numpy as np
import pytest

from soloist.kernels.errors import EngineError
from soloist.targets.base import Sampling
from soloist.targets.decode import CachedDecoder, before_stop, common_prefix, sample


class Bytes(CachedDecoder):
    """A 'model' over bytes that says a fixed text and then stops (id 0); counts what it is fed."""

    def __init__(self, answer: bytes, context: int = 200, broken: bool = False):
        super().__init__()
        self.name, self.context, self.stop_ids = "bytes", context, frozenset({0})
        self.answer, self.fed, self.broken = answer, [], broken
        self.prompt = 0

    def render(self, messages):
        return "".join(message["content"] for message in messages)

    def tokenize(self, text):
        self.prompt = len(text.encode())
        return list(text.encode())

    def text(self, tokens):
        return bytes(tokens).decode("utf-8", "replace")

    def _feed(self, tokens, keep):
        if self.broken:
            raise EngineError("broken")
        self.fed.append((len(tokens), keep))
        at = keep + len(tokens) - self.prompt
        logits = np.zeros(256, dtype=np.float32)
        logits[self.answer[at] if at < len(self.answer) else 0] = 10
        return logits

    def _feed_all(self, tokens):
        return np.stack([self._feed(tokens[: count + 1], 0) for count in range(len(tokens))])


def say(text):
    return [{"role": "user", "content": text}]


def test_only_what_is_new_is_computed():
    model = Bytes(b"yes")
    first = model.chat(say("abcdef"), Sampling())
    assert (first.text, first.finish, first.tokens_in, first.tokens_out) == ("yes", "stop", 6, 3)
    assert first.tokens_cached == 0
    assert model.fed == [(6, 0), (1, 6), (1, 7), (1, 8)]
    model.fed.clear()
    second = model.chat(say("abcxyz"), Sampling())
    assert second.tokens_cached == 3
    assert model.fed[0] == (3, 3)
    model.fed.clear()
    again = model.chat(say("abcxyz"), Sampling())
    assert again.text == "yes"
    assert again.tokens_cached == 5
    assert model.fed[0] == (1, 5)  # one token gives the logits


def test_a_failed_step_forgets_the_cache():
    model = Bytes(b"yes")
    model.chat(say("abcdef"), Sampling())
    model.broken = True
    with pytest.raises(EngineError):
        model.chat(say("abcdef"), Sampling())
    model.broken = False
    assert model.chat(say("abcdef"), Sampling()).tokens_cached == 0


def test_streaming_shows_whole_characters_and_nothing_twice():
    pieces = []
    reply = Bytes("é 🙂 ok".encode()).chat(say("x"), Sampling(), on_text=pieces.append)
    assert reply.text == "é 🙂 ok" == "".join(pieces)
    assert "🙂" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_stop_text_is_cut_off_and_length_is_kept():
    assert Bytes(b"one\ntwo").chat(say("x"), Sampling(stop=("\n",))).text == "one"
    short = Bytes(b"one two").chat(say("x"), Sampling(max_tokens=4))
    assert (short.text, short.finish, short.tokens_out) == ("one ", "length", 4)
    assert Bytes(b"a" * 50, context=20).chat(say("x" * 10), Sampling()).tokens_out == 9


def test_a_prompt_longer_than_the_context_is_refused():
    with pytest.raises(EngineError, match="prompt of 19 tokens does not fit"):
        Bytes(b"", context=20).chat(say("x" * 19), Sampling())


@pytest.mark.parametrize(
    ("a", "b", "count"), [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 3], 1), ([2], [1], 0)]
)
def test_common_prefix(a, b, count):
    assert common_prefix(a, b) == count


def test_draw_is_greedy_seeded_and_bounded_by_the_nucleus():
    logits = np.log(np.array([0.1, 0.6, 0.25, 0.05], dtype=np.float32))
    assert sample(logits, Sampling(), np.random.default_rng(0)) == 1
    warm = Sampling(temperature=1.0, top_p=0.8)
    random = np.random.default_rng(3)
    drawn = [sample(logits, warm, random) for _ in range(2000)]
    assert set(drawn) == {1, 2}
    assert np.mean(np.array(drawn) == 1) == pytest.approx(0.6 / 0.85, abs=0.04)
    again = np.random.default_rng(3)
    assert drawn[:50] == [sample(logits, warm, again) for _ in range(50)]


@pytest.mark.parametrize(
    ("stops", "expected"),
    [((), "one two"), (("two",), "one "), (("two", "o"), ""), (("e tw", " t"), "on"), ((" t", "e tw"), "on")],
)
def test_text_ends_before_the_first_stop(stops, expected):
    assert before_stop("one two", stops) == expected
