"""compile=True: as without, in few graphs, with clear errors."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from jobs import mpirun
from models import TwoInputs, assert_same_parameters
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs

X = torch.randn(23, 11, 3, generator=torch.Generator().manual_seed(1))
Y = X.mean(2, keepdim=True).cumsum(0)
SPEC = {"epochs": 2, "batchsize": 4, "seqsize": 5}  # both tails are short


class Sums(nn.Module):
    """Carries a sum over time, in a state with a part that is None."""

    def __init__(self, features: int = 3, hidden: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(features, hidden)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x, state=None):
        h = x.new_zeros(x.shape[1], self.inner.out_features) if state is None else state["h"][0]
        sums = 0.1 * self.inner(x).cumsum(0) + h
        return self.head(sums.tanh()), {"h": (sums[-1], None)}


def estimators(model=None, loss=None, spec=None, **more):
    """Make one estimator that compiles, and the same that does not."""
    model = Sums() if model is None else model
    loss = fs.seqloss(mse_loss) if loss is None else loss
    return [
        fs.Estimator(
            copy.deepcopy(model), loss, lambda p: torch.optim.AdamW(p, lr=1e-2), spec or SPEC,
            device="cpu", comm=None, progress=False, compile=flag, **more,
        )
        for flag in (True, False)
    ]  # fmt: skip


@pytest.fixture
def graphs():
    """Count what torch.compile compiles."""
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
def test_fit_and_predict_as_without(graphs):
    compiled, plain = estimators()
    w = torch.rand(11)
    for est in (compiled, plain):
        est.fit(X, Y)
    assert graphs() == 2  # fresh and carried; all lengths in one
    assert_same_parameters(compiled.model, plain.model, rtol=1e-5)
    for est in (compiled, plain):
        est.fit(X[:, :7], Y[:, :7], epochs=1)  # other lengths
    assert graphs() == 2
    assert compiled.history_[-1]["loss"] == pytest.approx(plain.history_[-1]["loss"], rel=1e-5)
    expected = torch.from_numpy(plain.predict(X))
    torch.testing.assert_close(
        torch.from_numpy(compiled.predict(X)), expected, rtol=1e-4, atol=1e-5
    )
    more = torch.from_numpy(plain.predict(X, reset=False))
    torch.testing.assert_close(
        torch.from_numpy(compiled.predict(X, reset=False)), more, rtol=1e-4, atol=1e-5
    )
    assert graphs() == 4
    torch.testing.assert_close(compiled.step(X[0]), plain.step(X[0]), rtol=1e-4, atol=1e-5)
    assert compiled.evaluate(X, Y, w) == pytest.approx(plain.evaluate(X, Y, w), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])  # noqa: S301
def test_copies_compile_again(copied, graphs):
    first, _ = estimators()
    again = copied(first.fit(X[:, :7], Y[:, :7]))
    torch._dynamo.utils.counters.clear()
    for est in (first, again):
        est.fit(X[:, :7], Y[:, :7], epochs=1)
    assert graphs() > 0
    assert again.history_[-1]["loss"] == first.history_[-1]["loss"]


@pytest.mark.slow
def test_many_estimators_and_lengths_do_not_exhaust_what_torch_allows():
    for steps in range(2, 12):
        compiled, plain = estimators(spec={"epochs": 1, "batchsize": 3, "seqsize": steps})
        for est in (compiled, plain):
            est.fit(X[:steps], Y[:steps])
        assert_same_parameters(compiled.model, plain.model, rtol=1e-5)


@pytest.mark.slow
def test_a_function_that_differs_by_length_may_be_compiled_often():
    def loss(m, xs, ys):
        value = mse_loss(m(xs), ys)
        return value * (1 + sum(xs.shape[0] > n for n in range(2, 20)))  # a graph for each length

    compiled, plain = estimators(loss=loss)
    with torch._dynamo.config.patch(recompile_limit=2):
        for est in (compiled, plain):
            for steps in range(4, 8):
                est.spec = fs.Spec(1, 11, steps)
                est.fit(X[:steps], Y[:steps])
    assert_same_parameters(compiled.model, plain.model, rtol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            fs.nn.Chain(nn.LSTM(3, 4, num_layers=2), nn.Linear(4, 1)), marks=pytest.mark.slow
        ),
        fs.nn.Chain(fs.nn.GRU(3, 4, trainable_state=True), nn.Tanh(), nn.Linear(4, 1)),
    ],
    ids=["torch", "fastseq"],
)
def test_recurrent_layers(graphs, model):
    compiled, plain = estimators(model)
    w = torch.rand(23, 11)
    w[5:10] = 0
    for est in (compiled, plain):
        est.fit(X, Y, w)
    assert graphs() <= 4
    assert [type(m) for m in compiled.model] == [type(m) for m in model]
    assert_same_parameters(compiled.model, plain.model, rtol=1e-4)
    expected = torch.from_numpy(plain.predict(X))
    torch.testing.assert_close(
        torch.from_numpy(compiled.predict(X)), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(compiled.step(X[0]), plain.step(X[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nested_inputs_and_outputs():
    def loss(m, xs, ys):
        return (m(xs)["level"] - ys).square().mean() + 1e-3 * m.head.weight.square().sum()

    x = (torch.randn(23, 11, 2), torch.randn(23, 11, 3))
    compiled, plain = estimators(TwoInputs(), loss)
    for est in (compiled, plain):
        est.fit(x, Y)
    assert_same_parameters(compiled.model, plain.model, rtol=1e-4)
    got, expected = compiled.predict(x), plain.predict(x)
    for name in ("level", "hidden"):
        torch.testing.assert_close(
            torch.from_numpy(got[name]), torch.from_numpy(expected[name]), rtol=1e-4, atol=1e-5
        )


def test_a_loss_that_breaks_the_graph():
    def loss(m, xs, ys):
        value = mse_loss(m(xs), ys)
        return value if float(value.detach()) > 0 else 2 * value

    compiled, plain = estimators(loss=loss)
    before = fs.net2vec(compiled.model).clone()
    with pytest.raises(
        ValueError, match=r"compile=True needs a model and a loss that .* one graph"
    ):
        compiled.fit(X, Y)
    assert torch.equal(fs.net2vec(compiled.model), before)
    plain.fit(X, Y)


def test_errors_of_model_and_loss_are_their_own():
    compiled, _ = estimators()
    with pytest.raises(
        ValueError, match=r"the model's output .* and the target .* differ in shape"
    ):
        compiled.fit(X, X)
    with pytest.raises(TypeError, match="compile must be True or False, got 'yes'"):
        fs.Estimator(Sums(), fs.seqloss(mse_loss), torch.optim.SGD, SPEC, compile="yes")


class Pool(nn.Module):
    """The mean of each sequence's own steps, as `lengths` tells them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 1)

    def forward(self, x, lengths=None):
        counts = torch.full((x.shape[1],), len(x)) if lengths is None else lengths
        inside = (torch.arange(len(x))[:, None] < counts).unsqueeze(-1)
        pooled = (x * inside).sum(0) / counts.clamp(min=1).unsqueeze(-1)
        return self.head(pooled).expand(len(x), -1, -1)


@pytest.mark.parametrize("by_user", [False, True])
def test_compiled_models_know_where_sequences_end(by_user):
    model = Pool()
    lengths = torch.tensor([6, 1, 3, 6])
    x, y = torch.randn(6, 4, 3), torch.randn(6, 4, 1)
    errors = [(model.head(x[:n, i].mean(0)) - y[:n, i]) ** 2 for i, n in enumerate(lengths)]
    given = torch.compile(model, backend="eager") if by_user else model
    est = fs.Estimator(
        given, fs.seqloss(mse_loss), torch.optim.SGD, fs.Spec(1, 4, 6),
        compile=not by_user, progress=False,
    )  # fmt: skip
    expected = torch.cat(errors).mean().item()
    assert est.evaluate(x, y, lengths=lengths) == pytest.approx(expected, rel=1e-5)


@pytest.mark.mpi
@pytest.mark.slow
def test_on_two_ranks(tmp_path):
    script = f"""
    import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
    import torch, fastseq as fs
    from test_compile import SPEC, X, Y
    trained = []
    for flag in (True, False):
        torch.manual_seed(0)
        # of several buckets, whose gradients leave while backward runs
        model = fs.nn.Chain(
            fs.nn.LSTM(3, 4), torch.nn.Linear(4, 1500), torch.nn.Linear(1500, 1500), torch.nn.Linear(1500, 1)
        )
        est = fs.Estimator(
            model, fs.seqloss(torch.nn.functional.mse_loss), torch.optim.SGD, SPEC, device="cpu",
            progress=False, compile=flag,
        )
        est.fit(X, Y).predict(X)
        trained.append(fs.net2vec(est.model).clone())
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-6)
    print("equal", trained[0].double().sum().item())
    """
    done = mpirun(tmp_path, 2, script)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("equal")]
    assert len(lines) == 2
    assert lines[0] == lines[1]
