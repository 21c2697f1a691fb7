"""The extraction loop: who is shown what, and that it ends."""

from __future__ import annotations

import time

import pytest

from soloist.kernels.errors import DataError, UsageError
from soloist.targets.base import Reply
from soloist.toolchain.knowledge.graph import KnowledgeGraph
from soloist.toolchain.knowledge.prompts import PROMPTS
from soloist.toolchain.knowledge.triples import Triple
from soloist.toolchain.knowledge.verify import LOYAL
from soloist.toolchain.teams.config import AgentConfig
from soloist.toolchain.teams.extraction import T_MAX, AgentExtractor, extract_triples

TEXT = "Spiders have eight legs, crabs ten."


class Cast:
    """Answers by role: `master` and `verifier` from their lists, one a round (a verifier: by what it is shown)."""

    def __init__(self, masters, verify=lambda text: LOYAL):
        self.masters, self.verify, self.heard = list(masters), verify, []

    def __call__(self, asked, round):
        replies = []
        for role, text in asked:
            self.heard.append((round, role, text))
            if role == "master":
                replies.append(self.masters.pop(0) if len(self.masters) > 1 else self.masters[0])
            else:
                replies.append(self.verify(text) if role == "verifier" else f"{role} says spider")
        return replies

    def texts(self, role):
        return [text for _, who, text in self.heard if who == role]


def test_both_extractors_feed_the_master(toy):
    cast = Cast(["(spider, has legs, 8)"])
    found = extract_triples(TEXT, cast, toy)
    assert found.triples == (Triple("spider", "has legs", "8"),)
    assert (found.rounds, found.dropped) == (1, False)
    assert [role for _, role, _ in cast.heard] == ["entity-extractor", "relation-extractor", "master"]
    (task,) = cast.texts("master")
    for part in (TEXT, "entity-extractor says spider", "relation-extractor says spider", "(spider, has legs, 8)"):
        assert part in task


def test_t_max_is_honoured_with_a_verifier_that_always_says_no():
    for t_max in (1, T_MAX, 5):
        cast = Cast(["(crab, has legs, 10)"], lambda text: "No.")
        found = extract_triples(TEXT, cast, t_max=t_max)
        assert found.dropped
        assert found.triples == ()
        assert found.rounds == t_max
        assert len(cast.texts("master")) == len(cast.texts("verifier")) == t_max
        assert [j.verdict for j in found.judgments] == ["unverified"]
    assert T_MAX == 3


def test_the_master_sees_what_was_refused_and_why_and_what_stands():
    cast = Cast(
        ["(spider, has legs, 8)\n(crab, has legs, 9)", "(spider, has legs, 8)\n(crab, has legs, 10)"],
        lambda text: "Crabs have ten." if text.endswith("9)") else LOYAL,
    )
    found = extract_triples(TEXT, cast)
    assert found.triples == (Triple("spider", "has legs", "8"), Triple("crab", "has legs", "10"))
    assert found.rounds == 2
    first, second = cast.texts("master")
    assert "Refused" not in first
    assert "Accepted" not in first
    assert "Refused, and why:\n(crab, has legs, 9): the verifier said: Crabs have ten." in second
    assert "Accepted:\n(spider, has legs, 8)" in second
    assert [text.rpartition("\n")[2] for text in cast.texts("verifier")] == [
        "Triple: (spider, has legs, 8)",
        "Triple: (crab, has legs, 9)",
        "Triple: (crab, has legs, 10)",
    ], "what was verified is not asked again"


def test_a_contradicted_triple_goes_back_with_the_graphs_fact(toy):
    cast = Cast(["(spider, has legs, 6)", "(spider, has legs, 8)"])
    assert extract_triples(TEXT, cast, toy).rounds == 2
    assert "(spider, has legs, 6): the graph says (spider, has legs, 8)" in cast.texts("master")[1]
    assert cast.texts("verifier") == []


def test_a_reply_without_triples_is_told_so_and_bounded(toy):
    cast = Cast(["I would rather not.", "(spider, has legs, 8)"])
    assert extract_triples(TEXT, cast, toy).rounds == 2
    assert "Your last reply was refused: no triple could be read" in cast.texts("master")[1]
    found = extract_triples(TEXT, Cast(["No."]), toy)
    assert found.dropped
    assert found.rounds == 3
    assert found.judgments == ()


def test_known_names_help_to_read_the_master():
    cast = Cast(["(Crab, red, LIVES IN, Sea)"])
    cast.verify = lambda text: LOYAL
    real = cast.__call__
    said = lambda asked, round: ["Crab, red\nSea", "LIVES IN"] if len(asked) == 2 else real(asked, round)  # noqa: E731
    assert extract_triples(TEXT, said).triples == (Triple("Crab, red", "LIVES IN", "Sea"),)


def test_rounds_are_watched(toy):
    seen = []
    extract_triples(
        TEXT,
        Cast(["(spider, has legs, 6)", "(spider, has legs, 8)"]),
        toy,
        watch=lambda round, judgments: seen.append((round, [j.verdict for j in judgments])),
    )
    assert seen == [(0, ["contradicted"]), (1, ["verified"])]


def test_bad_input(toy):
    with pytest.raises(DataError, match="the knowledge graph is empty"):
        extract_triples(TEXT, Cast(["(a, is, b)"]), KnowledgeGraph())
    with pytest.raises(UsageError, match="t_max must be at least 1"):
        extract_triples(TEXT, Cast(["(a, is, b)"]), toy, t_max=0)


class RoleEngine:
    """An engine that answers by the system prompt it is given."""

    model = "roles"

    def __init__(self, replies):
        self.replies, self.asks = replies, []

    def ask(self, asks):
        self.asks += asks
        now = time.perf_counter()
        texts = [self.replies[ask.messages[0]["content"]] for ask in asks]
        return [Reply(text, 1, 0, 1, now, now, now, "stop") for text in texts]

    def close(self):
        pass


def test_documents_are_extracted_over_an_engine():
    replies = {
        PROMPTS["entity-extractor"]: "crab",
        PROMPTS["relation-extractor"]: "has legs",
        PROMPTS["master"]: "(crab, has legs, 10)",
        PROMPTS["verifier"]: LOYAL,
    }
    engine = RoleEngine(replies)
    extractor = AgentExtractor(engine)
    assert extractor(TEXT) == (Triple("crab", "has legs", "10"),)
    assert (extractor.passages, extractor.dropped) == (1, 0)
    engine.replies = {**replies, PROMPTS["verifier"]: "no"}
    assert extractor(TEXT) == ()
    assert (extractor.passages, extractor.dropped) == (2, 1)
    assert [ask.sampling.seed for ask in engine.asks[-4:]] == [1, 1, 2, 2]


def test_own_agents_keep_their_prompts_and_every_missing_role_is_named():
    own = [
        AgentConfig(name=role, role=role, prompt="Mine." if role == "master" else "")
        for role in ("entity-extractor", "relation-extractor", "master", "verifier")
    ]
    replies = {
        PROMPTS["entity-extractor"]: "",
        PROMPTS["relation-extractor"]: "",
        "Mine.": "(a, is, b)",
        PROMPTS["verifier"]: LOYAL,
    }
    assert AgentExtractor(RoleEngine(replies), own)("a is b") == (Triple("a", "is", "b"),)
    with pytest.raises(UsageError, match=r"exactly one agent of role 'master' is needed, not 0; exactly .*'verifier'"):
        AgentExtractor(RoleEngine({}), own[:2])
