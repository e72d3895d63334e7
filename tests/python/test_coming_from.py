"""The tables of docs/coming-from-….md: each row has tests, and those that have none elsewhere are here."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from coming_from import TESTS
from sklearn.base import clone
from torch import nn
from torch.nn import functional as fn

import fastseq as fs
from fastseq import callbacks as cb

ROOT = Path(__file__).parents[2]


@functools.cache
def rows_of(page):
    """Return the rows of a page's tables, as cells, by the first cell that is not empty."""
    found = {}
    for line in (ROOT / "docs" / f"{page}.md").read_text().splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if set(cells[0]) == {"-"}:
            found.popitem()  # the head of the table
            continue
        name = next(filter(None, cells))
        assert name not in found, f"{page} has the row {name} twice"
        found[name] = cells
    return found


@functools.cache
def functions_of(file):
    folder = ROOT / "tests" / ("" if file.startswith("mpi/") else "python")
    path = folder / file
    if not path.exists():
        return frozenset()
    body = ast.parse(path.read_text()).body
    body += [one for node in body if isinstance(node, ast.ClassDef) for one in node.body]
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("page", TESTS)
def test_each_row_has_tests(page):
    assert list(rows_of(page)) == list(TESTS[page])
    for row, tests in TESTS[page].items():
        assert tests, row
        for test in tests.split():
            file, _, name = test.partition("::")
            assert name.startswith("test_"), f"{row}: {test}"
            assert name in functions_of(file), f"{row}: there is no {test}"


@pytest.mark.parametrize("page", TESTS)
def test_names_in_the_tables_are_there(page):
    """As far as they are written with their modules, or are a layer of torch's of the same name."""
    known = {"fs": fs, "callbacks": cb, "nn": nn, "torch": torch}
    for cells in rows_of(page).values():
        for code in re.findall(r"`([^`]+)`", " ".join(cells[1:3])):
            for first, rest in re.findall(r"\b(fs|callbacks|nn|torch)((?:\.[A-Za-z_]\w*)+)", code):
                if not re.search(rf"\.{first}{re.escape(rest)}", code):
                    functools.reduce(getattr, rest[1:].split("."), known[first])
    same = rows_of("coming-from-flux")
    (names,) = [row for row in same if row.startswith("`Dropout`, `BatchNorm`")]
    for name in re.findall(r"`(\w+)`", names):
        renamed = {"Conv": "Conv1d", "BatchNorm": "BatchNorm1d"}
        assert hasattr(nn, renamed.get(name, name.replace("Head", "head"))), name


def test_defaults_are_those_in_the_table():
    options = inspect.signature(fs.SequenceRegressor).parameters
    losses = inspect.signature(fs.SequenceClassifier).parameters["loss"].default
    default = {
        "`builder`": options["module"].default,
        "`optimiser=Adam(η)`": options["optimizer"].default,
        "`epochs`": options["epochs"].default,
        "`batch_size`": options["batchsize"].default,
        "`lambda`, `alpha`": options["weight_decay"].default,
        "`rng`": options["random_state"].default,
    }
    rows = rows_of("coming-from-mljflux")
    for row, value in default.items():
        written = value if not isinstance(value, str) else f'`"{value}"`'
        assert re.match(rf"{written}\b|{written}(?=[,;:]|$)", rows[row][3]), row
    assert rows["`loss`"][3] == f'`"{options["loss"].default}"`, `"{losses}"`'
    assert rows["`optimiser=Adam(η)`"][3].endswith(f'`schedule="{options["schedule"].default}"`')
    model = fs.SequenceRegressor("gru", epochs=1, random_state=0)
    x = np.random.default_rng(0).standard_normal((64, 5, 2), np.float32)
    group = model.fit(x, x[:, 0, 0]).estimator_.optimizer.param_groups[0]
    assert (group["max_lr"], group["weight_decay"]) == (0.01, 0)


def test_a_fitted_classifier_has_what_the_table_names():
    x = np.random.default_rng(0).standard_normal((60, 5, 2), np.float32)
    y = np.array(["no", "yes"])[(x[:, -1, 0] > 0).astype(int)]
    model = fs.SequenceClassifier("gru", epochs=3, random_state=0).fit(x, y)
    shares = model.predict_proba(x)
    with torch.no_grad():  # samples first there, time first here; scaled as in training
        scores = model.estimator_.predict(torch.from_numpy(x.swapaxes(0, 1)))
    scores = torch.as_tensor(scores)
    scores = scores[-1] if scores.ndim == 3 else scores
    np.testing.assert_allclose(shares, scores.softmax(-1).numpy(), atol=1e-6)
    assert (model.predict(x) == model.classes_[shares.argmax(1)]).all()
    assert isinstance(model.estimator_.model, nn.Module)
    assert [row["epoch"] for row in model.history_] == [1, 2, 3]  # no row before the first epoch


def test_a_stopped_model_is_trained_again_on_all_samples():
    x = np.random.default_rng(0).standard_normal((60, 5, 2), np.float32)
    y = (x[:, -1, 0] > 0).astype(int)
    stopped = fs.SequenceClassifier(
        "gru", epochs=9, validation_fraction=0.3, random_state=0, callbacks=[cb.NumberLimit(3)]
    ).fit(x, y)
    code = rows_of("coming-from-mljflux")["`retrain=true`"][1].strip("`")
    again = eval(code, {"clone": clone, "clf": stopped, "X": x, "y": y})  # noqa: S307
    assert stopped.n_iter_ == 3
    assert "validation_loss" not in again.history_[0]
    expected = fs.SequenceClassifier("gru", epochs=3, random_state=0).fit(x, y)
    assert torch.equal(fs.net2vec(again.estimator_.model), fs.net2vec(expected.estimator_.model))


def estimator(loss=None, optimizer=torch.optim.SGD, **spec):
    torch.manual_seed(0)
    spec = {"epochs": 1, "batchsize": 4, "seqsize": 5, **spec}
    loss = fs.seqloss(fn.mse_loss) if loss is None else loss
    return fs.Estimator(nn.Linear(3, 1), loss, optimizer, spec, progress=False)


X = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
Y = X.sum(2, keepdim=True)


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(torch.optim.Adam, lr=0.02, betas=(0.8, 0.9), eps=1e-5, weight_decay=0.1),
        functools.partial(torch.optim.AdamW, lr=0.02),
        functools.partial(torch.optim.SGD, lr=0.1),
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        functools.partial(torch.optim.RMSprop, lr=0.02),
    ],
)
def test_optimizers_take_their_own_arguments(optimizer):
    est = estimator(optimizer=optimizer).fit(X, Y, epochs=3)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    steps = optimizer(model.parameters())
    for _ in range(3):
        steps.zero_grad()
        fn.mse_loss(model(X), Y).backward()
        steps.step()
    torch.testing.assert_close(fs.net2vec(est.model), fs.net2vec(model))


def test_a_sum_is_a_loss_of_one_s_own():
    code = re.search(r"`(lambda [^`]+)`", rows_of("coming-from-flux")["`agg = sum`"][1])
    loss = eval(code[1], {"mse_loss": fn.mse_loss})  # noqa: S307
    est = estimator(loss, lambda params: torch.optim.SGD(params, lr=1e-3))
    before = fs.net2vec(est.model).detach().clone()
    fn.mse_loss(est.model(X), Y, reduction="sum").backward()
    gradient = torch.cat([p.grad.flatten() for p in est.model.parameters()])
    est.fit(X, Y)
    torch.testing.assert_close(fs.net2vec(est.model), before - 1e-3 * gradient)
    with pytest.raises(ValueError, match=r"seqloss returns a mean"):
        estimator(fs.seqloss(nn.MSELoss(reduction="sum"))).fit(X, Y)


def test_the_history_has_the_columns_that_are_named():
    row = rows_of("coming-from-pytorch-quik")[
        "`metrics.results`: `epoch, train_loss, valid_loss, time`"
    ]
    names = re.search(r"`(epoch, [^`]+)`", row[1])[1].split(", ")
    assert len(names) == 4
    table = estimator().fit(X, Y, validation=1).history_.to_frame()
    assert set(names) <= set(table.columns)


def test_an_array_of_julia_is_the_same_bytes():
    julia = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 40, 200)))  # (F, N, T)
    here = np.frombuffer(julia.tobytes("F")).reshape(200, 40, 3)
    assert (here == julia.T).all()
    assert julia[2, 1, 4] == here[4, 1, 2]


def test_states_are_read_and_loaded_in_the_model_s_structure():
    torch.manual_seed(0)
    m = fs.Stateful(fs.nn.Chain(fs.nn.LSTM(3, 4), nn.Linear(4, 1)))
    x = torch.randn(10, 2, 3)
    m(x[:6])
    state = fs.states(m)
    late = m(x[6:])
    fs.loadstates(m, state)
    torch.testing.assert_close(m(x[6:]), late)
    (h, c), none = state  # of the LSTM and of the Linear
    assert h.shape == c.shape == (1, 2, 4)
    assert none is None


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def gru(Wi, Wh, b, x, h):  # noqa: N803 (names of Flux)
    """One step of Flux's ``GRU``: the reset gate comes behind the product."""
    gx, gh, b = (np.split(a, 3) for a in (Wi @ x, Wh @ h, b))
    r, z = (sigmoid(gx[k] + gh[k] + b[k]) for k in (0, 1))
    return (1 - z) * np.tanh(gx[2] + r * gh[2] + b[2]) + z * h


def rnn(Wi, Wh, b, x, h):  # noqa: N803
    return np.tanh(Wi @ x + Wh @ h + b)


@pytest.mark.parametrize(("kind", "step", "gates"), [("GRU", gru, 3), ("RNN", rnn, 1)])
def test_recurrent_cells_are_those_of_flux(kind, step, gates):
    draw = np.random.default_rng(0).standard_normal
    weights = draw((gates * 4, 3)), draw((gates * 4, 4)), draw(gates * 4)
    layer = getattr(fs.nn, kind)(3, 4).double()
    with torch.no_grad():
        for name, value in zip(
            ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"), weights, strict=True
        ):
            getattr(layer, name).copy_(torch.from_numpy(value))
        layer.bias_hh_l0.zero_()
    x, h = draw((6, 3)), np.zeros(4)
    for here, there in zip(layer(torch.from_numpy(x)[:, None])[0][:, 0], x, strict=True):
        h = step(*weights, there, h)
        np.testing.assert_allclose(here.detach(), h, rtol=1e-10)


def test_the_lstm_is_that_of_flux():
    draw = np.random.default_rng(0).standard_normal
    Wi, Wh, b = draw((16, 3)), draw((16, 4)), draw(16)  # noqa: N806
    layer = fs.nn.LSTM(3, 4).double()
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.from_numpy(Wi))
        layer.weight_hh_l0.copy_(torch.from_numpy(Wh))
        layer.bias_ih_l0.copy_(torch.from_numpy(b))
        layer.bias_hh_l0.zero_()
    x, h, c = draw((6, 3)), np.zeros(4), np.zeros(4)
    for here, there in zip(layer(torch.from_numpy(x)[:, None])[0][:, 0], x, strict=True):
        enter, forget, cell, output = np.split(Wi @ there + Wh @ h + b, 4)
        c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(cell)
        h = sigmoid(output) * np.tanh(c)
        np.testing.assert_allclose(here.detach(), h, rtol=1e-10)


def test_layers_are_those_of_flux():
    """A layer with an activation, one beside another, one with a shortcut."""
    x = torch.randn(7, 2, 3)
    dense = fs.nn.Chain(nn.Linear(3, 3), nn.ReLU())

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 4)

        def forward(self, x):
            return torch.cat((self.a(x), self.b(x)), -1)

    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(x) + x

    linear, shortcut, beside = dense[0], Shortcut(), Beside()
    m = fs.nn.Chain(dense, shortcut, beside)
    weight, bias = (p.detach().numpy() for p in (linear.weight, linear.bias))
    first = torch.from_numpy(np.maximum(x.numpy() @ weight.T + bias, 0))
    second = first @ shortcut.layer.weight.T + shortcut.layer.bias + first
    y, _ = m(x)
    assert y.shape == (7, 2, 6)
    torch.testing.assert_close(y[..., :2], beside.a(second))
    torch.testing.assert_close(y[..., 2:], beside.b(second))
    a = np.linspace(-3, 3, 9)
    np.testing.assert_allclose(torch.sigmoid(torch.from_numpy(a)), sigmoid(a))
    np.testing.assert_allclose(fn.softplus(torch.from_numpy(a)), np.log1p(np.exp(a)))
    tanh = a / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    np.testing.assert_allclose(fn.gelu(torch.from_numpy(a)), tanh, atol=5e-4)


SCORES = np.random.default_rng(1).standard_normal((5, 4, 3))
CLASSES = np.random.default_rng(2).integers(3, size=(5, 4))
ONE_HOT = np.eye(3)[CLASSES]
SOFT = np.exp(SCORES) / np.exp(SCORES).sum(-1, keepdims=True)
TARGETS = SOFT[::-1]
FAR = 3 * SCORES - TARGETS
ZERO_ONE = ONE_HOT[..., :1]


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "value"),
    [
        (nn.MSELoss(), 3 * SCORES, TARGETS, (FAR**2).mean()),
        (nn.L1Loss(), 3 * SCORES, TARGETS, abs(FAR).mean()),
        (
            nn.HuberLoss(), 3 * SCORES, TARGETS,
            np.where(abs(FAR) < 1, FAR**2 / 2, abs(FAR) - 0.5).mean(),
        ),
        (nn.CrossEntropyLoss(), SCORES, CLASSES, -(ONE_HOT * np.log(SOFT)).sum(-1).mean()),
        (
            nn.BCELoss(), SOFT[..., :1], ZERO_ONE,
            -np.log(np.where(ZERO_ONE == 1, SOFT[..., :1], 1 - SOFT[..., :1])).mean(),
        ),
        (
            nn.BCEWithLogitsLoss(), SCORES[..., :1], ZERO_ONE,
            np.log1p(np.exp(np.where(ZERO_ONE == 1, -1, 1) * SCORES[..., :1])).mean(),
        ),
        (
            nn.KLDivLoss(), np.log(SOFT), TARGETS,
            (TARGETS * np.log(TARGETS / SOFT)).sum(-1).mean() / 3,
        ),
        (
            nn.PoissonNLLLoss(log_input=False), SOFT, TARGETS,
            (SOFT - TARGETS * np.log(SOFT)).mean(),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # what torch says of KLDivLoss
def test_losses_are_those_of_flux(loss, outputs, targets, value):
    targets = torch.from_numpy(np.ascontiguousarray(targets))
    found = fs.seqloss(loss)(fs.Stateful(nn.Identity()), torch.from_numpy(outputs), targets)
    assert float(found) == pytest.approx(value, rel=1e-6)
