"""The parts of the graph losses: who hears whom, the weighted mean, dropout that no split can change."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from soloist.toolchain.distill.graph_network import UNLABELED, adjacency, embed, judged, kept, paired, pooled  # noqa: E402
from soloist.toolchain.distill.packing import pack  # noqa: E402


def test_a_node_hears_itself_and_those_with_an_edge_to_it():
    heard = adjacency([[0, 1], [0, 2], [1, 2]], 3, torch.zeros(1, dtype=torch.float64))
    arriving = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)  # itself included
    want = torch.tensor([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.float64)
    assert torch.allclose(heard, want / torch.sqrt(arriving[:, None] * arriving[None, :]))


def test_later_tokens_weigh_more_and_a_longer_neighbor_changes_nothing(conversations):
    short, longer = sorted(conversations, key=lambda e: len(e.ids))[:: len(conversations) - 1]
    one, both = pack([short]), pack([short, longer])
    states = torch.randn(both.ids.numel(), 5)
    own = states[both.gather[0, : both.lengths[0]]]
    steps = torch.arange(1.0, len(own) + 1)
    want = (steps[:, None] * own).sum(0) / steps.sum()
    assert torch.allclose(embed(states, both)[0], want, atol=1e-6)
    assert torch.allclose(embed(own, one)[0], want, atol=1e-6)
    whole = pooled(states, both, [[0, 0, len(own)], [0, 2, 4]])
    assert torch.allclose(whole[0], want, atol=1e-6)
    assert torch.allclose(whole[1], (own[2] + 2 * own[3]) / 3, atol=1e-6)


def test_dropout_depends_on_the_steps_seed_and_the_question_alone():
    torch.manual_seed(5)
    one = kept((4, 100), 0.5, "q1")
    torch.rand(7)  # what else is drawn in between
    assert torch.equal(one, kept((4, 100), 0.5, "q1"))
    assert not torch.equal(one, kept((4, 100), 0.5, "q2"))
    assert set(one.unique().tolist()) == {0.0, 2.0}
    assert 120 < int((one > 0).sum()) < 280
    torch.manual_seed(6)
    assert not torch.equal(one, kept((4, 100), 0.5, "q1"))


def test_nodes_without_a_label_do_not_count():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    loss, right, count = judged(logits, torch.tensor([0, 0, UNLABELED]))
    want = torch.log1p(torch.exp(torch.tensor(-2.0))) + torch.log1p(torch.exp(torch.tensor(1.0)))
    assert (loss.item(), int(right), count) == (pytest.approx(want.item()), 1, 2)


def test_the_shorter_list_is_gone_through_again():
    assert paired([1, 2, 3], [7, 8]) == [[1, 7], [2, 8], [3, 7]]
    assert paired([1], [7, 8]) == [[1, 7], [1, 8]]
    assert paired([], [7]) == paired([1], []) == []
