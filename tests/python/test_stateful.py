from __future__ import annotations

import copy

import pytest
import torch
from models import Custom, chain
from torch import nn

import fastseq as fs
from fastseq._util.tree import tree_leaves, tree_map
from fastseq.nn.stateful import batch_dims, takes_state

X = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(3))


class Counter(nn.Module):
    """Shares one state among all sequences."""

    def forward(self, x, state=None):
        state = torch.zeros(()) if state is None else state
        return x + state + torch.arange(len(x)).view(-1, 1, 1), state + len(x)


class BatchLast(nn.Module):
    """Keeps the sequences in the last dimension of its state."""

    def forward(self, x, hx=None):
        hx = x.new_zeros(x.shape[2], x.shape[1]) if hx is None else hx
        sums = x.cumsum(0) + hx.T
        return sums, sums[-1].T


MODELS = [
    chain,
    Custom,
    Counter,
    BatchLast,
    lambda: nn.LSTM(3, 2, num_layers=2),
    lambda: nn.Linear(3, 2),
]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("cuts", [[12], [5, 7], [1] * 12])
def test_chunks_and_single_steps_are_one_series(make, cuts):
    model = make()
    m = fs.Stateful(model)
    expected = fs.Stateful(copy.deepcopy(model))(X)
    parts = [m(part) if len(cuts) < 12 else m(part[0]).unsqueeze(0) for part in X.split(cuts)]
    torch.testing.assert_close(torch.cat(parts), expected)


def test_detaching_cuts_the_graph_but_not_the_values():
    m = fs.Stateful(chain())
    m(X[:6])
    kept = m.get_state()
    m.detach()
    assert not any(a.requires_grad for a in tree_leaves(m.state))
    tree_map(torch.testing.assert_close, m.state, kept)
    m.reset_state()
    assert m.state is None


def test_everything_else_is_the_models():
    model = chain()
    m = fs.Stateful(model)
    assert list(m.parameters()) == list(model.parameters())
    assert m.training is model.training
    with pytest.raises(AttributeError):
        _ = m.nonsense
    assert copy.copy(m).module is model


def test_where_the_sequences_lie_in_states():
    assert batch_dims(chain(), X) == ((1, 1), None)
    assert batch_dims(Custom(), X) == {"h": 0, "more": (None,)}
    assert batch_dims(Counter(), X) == -1
    assert batch_dims(BatchLast(), X) == 1
    assert batch_dims(nn.Linear(3, 2), X) is None


def test_what_takes_a_state():
    assert takes_state(Custom())
    assert takes_state(Counter())
    assert takes_state(BatchLast())
    assert takes_state(fs.nn.Chain(nn.Linear(3, 1)))
    assert takes_state(torch.compile(nn.LSTM(3, 1)))
    assert not takes_state(nn.TransformerEncoderLayer(4, 2))
    assert not takes_state(nn.Conv1d(3, 1, 1))


def test_backward_direction_starts_at_zero_in_each_chunk():
    model = fs.nn.Chain(nn.GRU(3, 4, bidirectional=True), nn.Linear(8, 1))
    m = fs.Stateful(model)
    m(X[:6])
    m.detach()
    h = m.state[0]
    assert h[0].abs().sum() > 0
    assert h[1].abs().sum() == 0


def test_chain_is_a_sequential():
    model = chain()
    y, state = model(X)
    assert y.shape == (12, 5, 1)
    assert state[1] is None
    assert isinstance(model[0], nn.LSTM)
    model.append(nn.Tanh())
    y2, _ = model(X)
    torch.testing.assert_close(y2, y.tanh())
    assert list(chain().state_dict()) == list(
        nn.Sequential(nn.LSTM(3, 4), nn.Linear(4, 1)).state_dict()
    )


def test_chain_compiles_into_one_graph():
    torch._dynamo.reset()  # what it has skipped in other tests
    model = fs.nn.Chain(nn.Linear(3, 4), Counter(), nn.Linear(4, 1))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, state = compiled(X)
    expected, _ = model(X)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(compiled(X, state)[0], model(X, state)[0])


def test_trees():
    tree = {"a": (1, [2, None]), "b": 3}
    assert tree_leaves(tree) == [1, 2, 3]
    assert tree_map(lambda a: -a, tree) == {"a": (-1, [-2, None]), "b": -3}
    with pytest.raises(ValueError, match="zip"):
        tree_map(max, (1, 2), (1,))
