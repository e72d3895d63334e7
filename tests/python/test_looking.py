"""Models whose outputs depend on other time steps without a state: whole series, or a context."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from models import Custom, assert_same_parameters, chain
from torch import nn
from torch.nn.functional import mse_loss, pad

import fastseq as fs
from fastseq.nn.per_sequence import PerSequence
from fastseq.nn.stateful import in_mode, steps_apart

T, N = 40, 6
X = torch.randn(T, N, 3, generator=torch.Generator().manual_seed(0))
Y = X.mean(2, keepdim=True).cumsum(0)


class Causal(nn.Module):
    """Two causal convolutions with padding of their own: 4 + 2·2 earlier steps."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 4, 5), nn.Conv1d(4, 1, 3, dilation=2)

    def forward(self, x):
        h = torch.relu(self.first(pad(x.permute(1, 2, 0), (4, 0))))
        return self.second(pad(h, (4, 0))).permute(2, 0, 1)


class Strides(nn.Module):
    """Sees the step 20 before, which lies in no chunk of less."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(torch.cat([x, pad(x, (0, 0, 0, 0, 20, 0))[: len(x)]], -1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(3, 1, 8, dropout=0.0)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.layer(x))


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(3, 1, 3, padding=1)

    def forward(self, x):
        return self.layer(x.permute(1, 2, 0)).permute(2, 0, 1)


class Pool(nn.Module):
    def __init__(self, n_in=3, n_out=1):
        super().__init__()
        self.inner, self.head = nn.Linear(n_in, 8), nn.Linear(8, n_out)

    def forward(self, x):
        pooled = torch.relu(self.inner(x)).mean(0)
        return self.head(pooled).expand(len(x), -1, -1)


class Patches(nn.Module):
    """Each patch of 5 steps has its mean as output."""

    def forward(self, x):
        whole = pad(x, (0, 0, 0, 0, 0, -len(x) % 5)).unflatten(0, (-1, 5))
        return whole.mean(1).repeat_interleave(5, 0)[: len(x)]


class OwnBidirectional(nn.Module):
    """Has a state, which does not tell what comes."""

    def __init__(self):
        super().__init__()
        self.forwards, self.backwards = nn.GRU(3, 2), nn.GRU(3, 2)
        self.head = nn.Linear(4, 1)

    def forward(self, x, state=None):
        a, state = self.forwards(x, state)
        b = self.backwards(x.flip(0))[0].flip(0)
        return self.head(torch.cat([a, b], -1)), state


def convolution_below_lstm():
    return fs.nn.Chain(Own(Causal), nn.LSTM(1, 4), nn.Linear(4, 1))


class Own(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = kind()

    def forward(self, x):
        return self.inner(x)


def bidirectional_within():
    return fs.nn.Chain(Tail(nn.LSTM(3, 4, bidirectional=True)), nn.Linear(8, 1))


class Tail(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def estimator(model, seqsize=7, batchsize=4, lr=0.0, **more):
    return fs.Estimator(
        model, fs.seqloss(mse_loss), lambda p: torch.optim.SGD(p, lr=lr) if list(p) else None,
        fs.Spec(2, batchsize, seqsize, **more), progress=False, seed=0,
    )  # fmt: skip


def whole(model, x=X):
    """What plain torch says of whole series."""
    with in_mode(model, training=False), torch.no_grad():
        y = model(x)
    return (y[0] if isinstance(y, tuple) else y).numpy()


STATELESS = [Causal, Strides, Attention, Centred, Pool]
LOOKING = [*STATELESS, OwnBidirectional, convolution_below_lstm, bidirectional_within]


def name(make):
    return getattr(make, "__name__", str(make))


@pytest.mark.parametrize("make", LOOKING, ids=name)
def test_predict_and_evaluate_do_not_depend_on_seqsize(make):
    model = make()
    expected = whole(model)
    loss = mse_loss(torch.from_numpy(expected), Y).item()
    for seqsize in (1, 7, 20, T):
        est = estimator(model, seqsize)
        for _ in range(2):
            np.testing.assert_allclose(est.predict(X), expected, rtol=1e-4, atol=1e-5)
        assert est.evaluate(X, Y) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("network", [False, True])
def test_bidirectional_layers_are_warned_of_or_refused_if_fit_cuts_the_series(network):
    model = fs.nn.Chain(fs.nn.LSTM(3, 4, bidirectional=True), nn.Linear(8, 1))
    if network:
        model = fs.nn.PooledRNN(3, 1, "gru", 4, bidirectional=True, pool=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator(model, T).fit(X, Y)  # chunks are whole series
    if network:
        with pytest.raises(ValueError, match="Train on whole series"):
            estimator(model, 7).fit(X, Y)
    else:
        with pytest.warns(UserWarning, match="bidirectional"):
            estimator(model, 7).fit(X, Y)


def test_a_cut_between_patches_is_not_taken_for_none():
    model = nn.Sequential(Patches(), nn.Linear(3, 1))
    np.testing.assert_allclose(estimator(model, 10).predict(X), whole(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", STATELESS, ids=name)
def test_fit_does_not_train_on_chunks_what_looks_beyond_them(make):
    model = make()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=rf"Train on whole series \(seqsize={T} or more.*context"):
        estimator(model, lr=0.1, scale_x="standard").fit(X, Y)
    assert_same_parameters(model, before, rtol=0)
    est = estimator(model, T, batchsize=N, lr=0.1).fit(X, Y, epochs=1)
    mse_loss(before(X), Y).backward()
    torch.optim.SGD(before.parameters(), lr=0.1).step()
    assert_same_parameters(model, before, rtol=1e-5)
    np.testing.assert_allclose(est.predict(X), whole(model), rtol=1e-4, atol=1e-5)


def test_a_model_with_a_state_is_warned_of():
    with pytest.warns(UserWarning, match="later time steps.* not in its state.*whole series"):
        estimator(OwnBidirectional()).fit(X, Y)


@pytest.mark.parametrize("make", [Custom, chain, lambda: Own(lambda: nn.Linear(3, 1))], ids=name)
def test_of_others_nothing_is_said(make):
    model = make()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est = estimator(model, 5).fit(X, Y)
        got = est.predict(X)
    assert torch.equal(state, torch.get_rng_state())
    expected = fs.Stateful(model)(X).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_it_is_found_out_once():
    runs = []

    class Counted(Centred):
        def forward(self, x):
            runs.append(self.training)
            return super().forward(x)

    est = estimator(Counted())
    est.predict(X)
    first = len(runs)
    est.predict(X)
    assert len(runs) - first == 1 + -(-N // 4)  # one to learn what it returns
    assert not any(runs)


class Gated(Causal):
    """A branch that begins with a weight of 0, and a last layer that begins as the identity."""

    def __init__(self, *, head):
        super().__init__()
        self.gate = nn.Parameter(torch.ones(1) if head else torch.zeros(1))
        self.head = nn.Conv1d(1, 1, 3)
        if head:
            nn.init.zeros_(self.first.weight)
            nn.init.zeros_(self.second.weight)
            nn.init.dirac_(self.head.weight)

    def forward(self, x):
        h = x.mean(2, keepdim=True) + self.gate * super().forward(x)
        return self.head(pad(h.permute(1, 2, 0), (1, 1))).permute(2, 0, 1)


@pytest.mark.parametrize("head", [False, True])
def test_weights_that_begin_with_zero_do_not_hide_it(head):
    model = Gated(head=head)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="whole series"):
        estimator(model).fit(X, Y)
    assert_same_parameters(model, before)


@pytest.mark.parametrize("make", [Causal, Centred, Pool, chain], ids=name)
@pytest.mark.parametrize("context", [0, 8])
def test_sequences_without_steps(make, context):
    if context and make is not Causal:
        return
    est = estimator(make(), context=context)
    assert np.isnan(est.predict(X, lengths=[0] * N)).all()
    for call in (est.fit, est.evaluate):
        with pytest.raises(ValueError, match="no sample of y counts"):
            call(X, Y, lengths=[0] * N)


def test_buffers_and_modes_stay():
    class Counts(Pool):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            self.calls += 1
            return super().forward(self.norm(x.permute(1, 2, 0)).permute(2, 0, 1))

    model = Counts()
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    with pytest.raises(ValueError, match="whole series"):
        estimator(model).fit(X, Y)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    assert model.training


@pytest.mark.parametrize("seqsize", [1, 7, 13])
def test_context_makes_chunks_equal_whole_series(seqsize):
    model = Causal()
    est = estimator(model, seqsize, context=8)
    expected = whole(model)
    np.testing.assert_allclose(est.predict(X), expected, rtol=1e-4, atol=1e-5)
    loss = mse_loss(torch.from_numpy(expected), Y).item()
    assert est.evaluate(X, Y) == pytest.approx(loss, rel=1e-4)
    est.fit(X, Y)  # lr is 0
    assert est.history_[-1]["loss"] == pytest.approx(loss, rel=1e-4)


def test_training_with_context_is_that_of_a_plain_loop():
    model = Causal()
    plain = copy.deepcopy(model)
    est = estimator(model, 7, batchsize=N, lr=0.1, context=8)
    est.fit(X, Y, epochs=1, validation=None)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for t in range(0, T, 7):
        begin = max(t - 8, 0)
        output = plain(X[begin : t + 7])[t - begin :]
        optimizer.zero_grad()
        mse_loss(output, Y[t : t + 7]).backward()
        optimizer.step()
    assert_same_parameters(model, plain, rtol=1e-5)


def test_context_goes_on_step_by_step_and_call_by_call():
    model = Causal()
    est = estimator(model, context=8)
    expected = whole(model)
    for t in range(12):
        np.testing.assert_allclose(est.step(X[t]).numpy(), expected[t], rtol=1e-4, atol=1e-5)
    got = est.predict(X[12:], reset=False)
    np.testing.assert_allclose(got, expected[12:], rtol=1e-4, atol=1e-5)


def test_context_of_sequences_of_different_lengths():
    model = Causal()
    est = estimator(model, 5, context=8)
    lengths = [40, 3, 17, 9, 1, 26]
    series = [X[:n, i] for i, n in enumerate(lengths)]
    for got, one in zip(est.predict(series), series, strict=True):
        np.testing.assert_allclose(got, whole(model, one[:, None])[:, 0], rtol=1e-4, atol=1e-5)
    after = est.step(X[0]).numpy()
    for i, one in enumerate(series):
        expected = whole(model, torch.cat([one, X[:1, i]])[:, None])[-1, 0]
        np.testing.assert_allclose(after[i], expected, rtol=1e-4, atol=1e-5)


def test_validation_by_time_goes_on_with_a_context():
    model = Causal()
    est = estimator(model, 7, context=8).fit(X, Y, validation={"time": 10})
    expected = mse_loss(torch.from_numpy(whole(model))[-10:], Y[-10:]).item()
    assert est.history_[-1]["validation_loss"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="validation by time starts in the middle"):
        estimator(model, T).fit(X, Y, validation={"time": 10})


@pytest.mark.parametrize(
    ("make", "context", "message"),
    [
        (Causal, 7, "spec.context=7 is too few"),
        (Strides, 19, "spec.context=19 is too few"),
        (Centred, 8, "depend on later ones"),
        (chain, 1, "models without state"),
        (Causal, -1, "must be a number of steps"),
    ],
)
def test_a_context_that_does_not_do(make, context, message):
    with pytest.raises(ValueError, match=message):
        estimator(make(), context=context).fit(X, Y)


def test_a_context_that_does_not_do_for_lists_in_one_chunk():
    with pytest.raises(ValueError, match="later ones"):
        estimator(Centred(), T, context=1).predict(X, lengths=[T, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("make", [*STATELESS, convolution_below_lstm], ids=name)
def test_no_steps_of_what_looks_at_others(make):
    for prepare in (lambda _: None, lambda est: est.predict(X)):
        est = estimator(make())
        prepare(est)
        with pytest.raises(ValueError, match="step gives the model one time step"):
            est.step(X[0])
    with pytest.raises(ValueError, match="reset=False cannot continue"):
        est.predict(X, reset=False)


@pytest.mark.parametrize("make", [Causal, Attention, Centred, Pool], ids=name)
def test_padding_is_not_seen(make):
    model = make()
    wanted = copy.deepcopy(model)
    lengths = [9, 4, 9, 6, 1, 4]
    series = [X[:n, i] for i, n in enumerate(lengths)]
    targets = [Y[:n, i] for i, n in enumerate(lengths)]
    est = estimator(model, 9, batchsize=N, lr=0.1)
    errors = [
        ((wanted(a[:, None])[:, 0] - b) ** 2).flatten()
        for a, b in zip(series, targets, strict=True)
    ]
    loss = torch.cat(errors).mean()
    assert est.evaluate(series, targets) == pytest.approx(loss.item(), rel=1e-4)
    est.fit(series, targets, epochs=1)
    loss.backward()
    torch.optim.SGD(wanted.parameters(), lr=0.1).step()
    assert_same_parameters(model, wanted, rtol=1e-4)


def test_a_state_and_padding_do_not_go_together_where_later_steps_are_seen():
    with pytest.raises(ValueError, match="a parameter `lengths`"):
        estimator(OwnBidirectional(), T).fit(X, Y, lengths=[40, 3, 4, 5, 6, 7])


def both_ways(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return fs.nn.Chain(kind(3, 4, bidirectional=True), nn.Linear(8, 1))


def test_torch_s_bidirectional_layers_do_not_see_padding(by_torch):
    """They are run on the sequences of each length apart; ours know where sequences end."""
    lengths = [9, 4, 9, 6, 1, 4]
    found = []
    for kind in (nn.LSTM, fs.nn.LSTM):
        for train in (by_torch, lambda est, *data, **more: est.fit(*data, **more)):
            model = both_ways(kind)
            est = estimator(model, 9, batchsize=N, lr=0.1)
            train(est, X[:9], Y[:9], lengths=lengths)
            found.append((model, est.evaluate(X[:9], Y[:9], lengths=lengths)))
    for model, loss in found[:-1]:
        assert_same_parameters(model, found[-1][0], rtol=1e-4)
        assert loss == pytest.approx(found[-1][1], rel=1e-5)


class BothWays(nn.Module):
    """Has no parameter ``lengths``."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.GRU(3, 2, bidirectional=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.layer(x)[0])


def test_averaged_networks_that_get_no_lengths_do_not_see_padding():
    lengths = np.array([9, 4, 9, 6, 1, 4])
    within = np.arange(9)[:, None] < lengths

    def loss(m, xs, ys, ws):
        outputs = m(xs)
        out = outputs[0] if isinstance(outputs, tuple) else outputs
        return (((out - ys) ** 2)[..., 0] * ws).sum() / ws.sum()

    for chained in (False, True):
        torch.manual_seed(0)
        net = fs.nn.Averaged([BothWays()])
        est = estimator(fs.nn.Chain(nn.GRU(3, 3), net) if chained else net, 9, batchsize=N)
        est.loss = loss
        est.fit(X[:9], Y[:9], lengths=lengths)
        errors = (est.predict(X[:9], lengths=lengths) - Y[:9].numpy())[..., 0][within]
        assert est.history_[-1]["loss"] == pytest.approx((errors**2).mean(), rel=1e-5)


def test_layers_that_get_no_lengths_are_run_once_per_chunk():
    def loss(m, xs, ys, ws):
        return (torch.cat([m(xs[:3]), m(xs[3:])]) - ys).square().mean()

    est = estimator(both_ways(nn.LSTM), 9, batchsize=N)
    est.loss = loss
    with pytest.raises(ValueError, match="more than once in a chunk in which sequences end"):
        est.fit(X[:9], Y[:9], lengths=[9, 4, 9, 6, 1, 4])
    with pytest.raises(ValueError, match="a bidirectional LSTM that takes no lengths"):
        both_ways(nn.LSTM)(X, lengths=torch.tensor([9, 4, 9, 6, 1, 4]))


def test_torch_s_bidirectional_layers_need_sequences_of_different_lengths_whole():
    lengths = [9, 4, 9, 6, 1, 4]
    with pytest.raises(ValueError, match="GRU or RNN, or seqsize=9 or more"):
        estimator(both_ways(nn.LSTM), 5).fit(X[:9], Y[:9], lengths=lengths)
    with pytest.warns(UserWarning, match="bidirectional"):
        estimator(both_ways(fs.nn.LSTM), 5).fit(X[:9], Y[:9], lengths=lengths)


def test_a_state_goes_with_pooling_where_all_layers_know_the_lengths():
    lengths = [9, 4, 9, 6, 1, 4]
    model = fs.nn.Chain(fs.nn.LSTM(3, 4), fs.nn.Pool("mean"), nn.Linear(4, 1))
    est = estimator(model, 9)
    est.loss = PerSequence(fs.seqloss(mse_loss))
    est.fit(X[:9], Y[:9], lengths=lengths)
    with pytest.raises(ValueError, match="would see the padding"):
        estimator(fs.nn.Chain(nn.LSTM(3, 4), Pool(4)), 9).fit(X[:9], Y[:9], lengths=lengths)


def test_what_is_known_of_layers():
    assert steps_apart(chain())
    assert steps_apart(fs.nn.Chain(fs.nn.GRU(2, 2), nn.LayerNorm(2), nn.ReLU()))
    for other in (
        Pool(),
        nn.Conv1d(1, 1, 1),
        nn.LayerNorm((2, 2)),
        nn.LSTM(1, 1, bidirectional=True),
    ):
        assert not steps_apart(fs.nn.Chain(other))


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x, state=None):
        return self.head(self.norm(x.flatten(0, 1)).view(x.shape)), state


def test_batch_norm_of_padded_sequences_is_warned_of():
    series, targets = [X[:5, 0], X[:9, 1]], [Y[:5, 0], Y[:9, 1]]
    with pytest.warns(UserWarning, match="norm: statistics of BatchNorm count the padding"):
        estimator(Normalised(), 9).fit(series, targets)


def test_a_single_sequence_is_joined_to_the_block_before():
    class PooledNorm(Pool):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def forward(self, x):
            pooled = self.norm(self.inner(x).mean(0))
            return self.head(pooled).expand(len(x), -1, -1)

    model = PooledNorm()
    plain = copy.deepcopy(model)
    est = estimator(model, T, batchsize=3, lr=0.1)
    x, y = torch.cat([X, X[:, :1]], 1), torch.cat([Y, Y[:, :1]], 1)
    est.fit(x, y, epochs=1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for part in (slice(0, 3), slice(3, 7)):
        optimizer.zero_grad()
        mse_loss(plain(x[:, part]), y[:, part]).backward()
        optimizer.step()
    assert_same_parameters(model, plain, rtol=1e-5)


class Fixed(nn.Module):
    """A convolution that needs 7 steps, or a layer over all of 20."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.inner = nn.Conv1d(n_in, 8, 7)
        self.head = nn.Linear(8, n_out)

    def forward(self, x):
        pooled = torch.relu(self.inner(x.permute(1, 2, 0))).mean(2)
        return self.head(pooled).expand(len(x), -1, -1)


class Flat(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.head = nn.Linear(20 * n_in, n_out)

    def forward(self, x):
        return self.head(x.transpose(0, 1).flatten(1)).expand(len(x), -1, -1)


class Pooled(nn.Module):
    """Returns one output for a sequence, ``(N, K)``."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.rnn, self.head = nn.GRU(n_in, 8), nn.Linear(8, n_out)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(0))


RNG = np.random.default_rng(0)
SAMPLES = RNG.standard_normal((33, 20, 2)).astype(np.float32)
LABELS = SAMPLES[:, :, 0].mean(1) > 0
MODULES = [Fixed, Flat, Pooled, Pool]


def plain_outputs(model, samples):
    """Return what a wrapper's module says of each sample, run by itself."""
    module = model.estimator_.model
    found = [whole(module, torch.from_numpy(a)[:, None]) for a in samples]
    return np.concatenate([y[-1] if y.ndim == 3 else y for y in found])


def made(kind, module, **more):
    options = {"epochs": 2, "batchsize": 8, "random_state": 0, "scale_x": None, **more}
    return kind(module, **options)


@pytest.mark.parametrize("module", MODULES, ids=name)
def test_modules_with_one_target_per_sequence(module):
    model = made(fs.SequenceClassifier, module).fit(SAMPLES, LABELS)
    scores = torch.from_numpy(plain_outputs(model, SAMPLES)).softmax(-1).numpy()
    np.testing.assert_allclose(model.predict_proba(SAMPLES), scores, rtol=1e-4, atol=1e-5)
    numbers = SAMPLES.mean((1, 2))
    model = made(fs.SequenceRegressor, module, scale_y=None, validation_fraction=0.2)
    model.set_params(callbacks=[fs.callbacks.Metrics("r2")])
    model.fit(SAMPLES, numbers)
    expected = plain_outputs(model, SAMPLES)[:, 0]
    np.testing.assert_allclose(model.predict(SAMPLES), expected, rtol=1e-4, atol=1e-5)
    r2 = 1 - ((expected - numbers) ** 2).sum() / ((numbers - numbers.mean()) ** 2).sum()
    assert model.score(SAMPLES, numbers) == pytest.approx(r2, rel=1e-4)


@pytest.mark.parametrize("module", [Fixed, Pooled, Pool], ids=name)
def test_series_longer_than_those_of_training_and_lists(module):
    model = made(fs.SequenceClassifier, module).fit(SAMPLES, LABELS)
    longer = RNG.standard_normal((5, 31, 2)).astype(np.float32)
    expected = torch.from_numpy(plain_outputs(model, longer)).softmax(-1).numpy()
    np.testing.assert_allclose(model.predict_proba(longer), expected, rtol=1e-4, atol=1e-5)
    model.partial_fit(longer, LABELS[:5])
    assert model.estimator_.spec.seqsize == 31
    listed = [a[: 7 + i % 5] for i, a in enumerate(SAMPLES)]
    model = made(fs.SequenceClassifier, module).fit(listed, LABELS)
    expected = torch.from_numpy(plain_outputs(model, listed)).softmax(-1).numpy()
    np.testing.assert_allclose(model.predict_proba(listed), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [20, 7, 12, 20, 9, 7]])
@pytest.mark.parametrize("module", [Fixed, Pooled, Pool], ids=name)
def test_training_of_pooling_modules_is_that_of_a_plain_loop(module, lengths):
    samples, numbers = SAMPLES[:6], SAMPLES[:6].mean((1, 2))
    given = samples if lengths is None else [a[:n] for a, n in zip(samples, lengths, strict=True)]
    model = made(
        fs.SequenceRegressor, module, epochs=1, batchsize=6, optimizer="sgd", lr=0.1, schedule=None, clip_norm=None,
        scale_y=None,
    ).fit(given, numbers)  # fmt: skip
    first = made(fs.SequenceRegressor, module, epochs=1, lr=0.0, optimizer="sgd", batchsize=6)
    plain = first.set_params(scale_y=None).fit(given, numbers).estimator_.model
    outputs = [plain(torch.from_numpy(a)[:, None]) for a in given]
    outputs = torch.cat([y[-1] if y.dim() == 3 else y for y in outputs])
    plain.zero_grad()
    mse_loss(outputs[:, 0], torch.from_numpy(numbers)).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert_same_parameters(model.estimator_.model, plain, rtol=1e-4)


def test_targets_per_step_need_outputs_per_step():
    with pytest.raises(ValueError, match=r"must be \(time, sequences, features\)"):
        made(fs.SequenceRegressor, Pooled).fit(SAMPLES, SAMPLES[..., :1])
    with pytest.raises(ValueError, match=r"must be \(time, sequences, features\)"):
        estimator(Pooled(3, 1), T).fit(X, Y)
    with pytest.raises(ValueError, match=r"must be \(time, sequences, features\)"):
        estimator(Pooled(3, 1), T).predict(X)


def test_long_series_with_targets_per_step_are_not_cut():
    samples = RNG.standard_normal((4, 130, 3)).astype(np.float32)
    builder = Centred()
    model = made(fs.SequenceRegressor, builder, scale_y=None)
    model.fit(samples, samples[..., :1])
    expected = whole(model.estimator_.model, torch.from_numpy(samples).swapaxes(0, 1))
    np.testing.assert_allclose(
        model.predict(samples), expected.swapaxes(0, 1), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="None in the scikit-learn estimators"):
        made(fs.SequenceRegressor, builder, seqsize=50).fit(samples, samples[..., :1])
