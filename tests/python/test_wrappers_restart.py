"""Warm restarts of the scikit-learn estimators: two calls do what one would have done."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from wrapped import LABELS, LAST, LIST, RNG, STEPS, X, classifier, regressor, same

import fastseq as fs


@pytest.mark.parametrize(
    ("x", "y", "more"),
    [
        (X, LAST, {}),
        (X, LAST, {"dropout": 0.3, "seqsize": 4, "accumulate": 2}),
        (X, STEPS, {"validation_fraction": 0.2, "clip_norm": 0.5}),
        (LIST, LAST, {"optimizer": "sgd", "decay_biases": False, "weight_decay": 0.1}),
        (X[:, 0], LAST, {"module": "mlp", "dropout": 0.2, "num_layers": 2}),
    ],
)
def test_three_and_five_epochs_are_eight(x, y, more):
    whole = regressor(epochs=8, **more).fit(x, y)
    parts = regressor(epochs=3, warm_start=True, **more).fit(x, y)
    assert not parts.continued_
    parts.set_params(epochs=8).fit(x, y)
    assert parts.continued_
    assert parts.n_iter_ == 8
    assert same(whole, parts)
    stepwise = regressor(epochs=3, **more)
    for _ in range(8):
        stepwise.partial_fit(x, y)
    assert same(whole, stepwise)


def test_what_draws_seeds_is_asked_once_per_cold_start():
    whole, parts = (
        regressor(epochs=n, dropout=0.2, validation_fraction=0.25, warm_start=True,
                  random_state=np.random.RandomState(7))
        for n in (5, 2)
    )  # fmt: skip
    parts.fit(X, LAST).set_params(epochs=5).fit(X, LAST)
    assert same(whole.fit(X, LAST), parts)
    assert whole.history_[-1]["validation_loss"] == parts.history_[-1]["validation_loss"]


def test_it_goes_on_after_a_pickle():
    whole = regressor(epochs=6, dropout=0.2).fit(X, LAST)
    part = regressor(epochs=2, dropout=0.2, warm_start=True).fit(X, LAST)
    again = pickle.loads(pickle.dumps(part))  # noqa: S301
    again.set_params(epochs=6).fit(X, LAST)
    assert again.continued_
    assert same(whole, again)


def test_a_classifier_goes_on():
    w = RNG.uniform(0, 1, 48)
    whole = classifier(epochs=5, validation_fraction=0.25).fit(X, LABELS, w)
    parts = classifier(epochs=2, validation_fraction=0.25, warm_start=True).fit(X, LABELS, w)
    assert parts.set_params(epochs=5).fit(X, LABELS, w).continued_
    assert same(whole, parts)


def test_lr_and_optimizer_may_change():
    model = regressor(warm_start=True).fit(X, LAST)
    kept, state = model.estimator_, model.estimator_.optimizer
    model.set_params(lr=0.5, epochs=4).fit(X, LAST)
    assert model.continued_
    assert model.estimator_ is kept
    assert model.estimator_.optimizer is state
    assert [row["lr"] for row in model.history_] == [0.02, 0.02, 0.02, 0.5]
    model.set_params(optimizer="sgd", epochs=5).fit(X, LAST)
    assert model.continued_
    assert isinstance(model.estimator_.optimizer, torch.optim.SGD)
    assert model.n_iter_ == 5


def test_lr_may_change_where_biases_do_not_decay():
    model = regressor(warm_start=True, weight_decay=0.1, decay_biases=False).fit(X, LAST)
    kept = model.estimator_.optimizer
    model.set_params(lr=0.5, epochs=4).fit(X, LAST)
    assert model.estimator_.optimizer is kept
    assert [group["lr"] for group in kept.param_groups] == [0.5, 0.5]
    model.set_params(weight_decay=0.2, epochs=5).fit(X, LAST)
    assert model.continued_
    groups = model.estimator_.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_size": 9}, "hidden_size changed"),
        ({"batchsize": 8, "loss": "mae"}, "batchsize, loss changed"),
        ({"epochs": 2}, "epochs went down from 3 to 2"),
        ({"warm_start": False}, "warm_start is False"),
        ({"random_state": 1}, "random_state changed"),
    ],
)
def test_other_changes_start_cold_and_that_is_told(change, why, capsys):
    model = regressor(warm_start=True).fit(X, LAST)
    changed = model.set_params(**change, verbose=1).fit(X, LAST)
    assert not changed.continued_
    assert capsys.readouterr().out == f"SequenceRegressor starts from scratch: {why}\n"
    assert same(changed, regressor(**change).fit(X, LAST))
    changed.set_params(warm_start=True, epochs=changed.epochs + 1).fit(X, LAST)
    assert "continues after epoch" in capsys.readouterr().out


def test_data_of_another_form_start_cold():
    model = regressor(warm_start=True, epochs=2)
    for x, y in (
        (X, LAST),
        (X[..., :2], LAST),
        (X, STEPS[:, 0]),
        (X, STEPS),
        (X.astype("f"), STEPS),
    ):
        assert not model.fit(x, y).continued_
        assert same(model, regressor(epochs=2).fit(x, y))
    model = classifier(warm_start=True, epochs=2).fit(X, LABELS)
    assert not model.fit(X, LAST > 0).continued_


def test_nothing_to_do_is_told():
    model = regressor(warm_start=True).fit(X, LAST)
    with pytest.warns(UserWarning, match="nothing to do: epochs=3, and 3 are done"):
        model.fit(X, LAST)
    assert model.n_iter_ == 3


def test_partial_fit_refuses_what_it_cannot_do():
    model = regressor().partial_fit(X, LAST)
    with pytest.raises(ValueError, match="2 features, but SequenceRegressor is expecting 3"):
        model.partial_fit(X[..., :2], LAST)
    with pytest.raises(ValueError, match="partial_fit cannot continue: hidden_size changed"):
        model.set_params(hidden_size=5).partial_fit(X, LAST)


def test_a_fit_that_fails_leaves_nothing_half_done():
    model = regressor(loss=lambda m, xs, _: m(xs).mean() * torch.nan)
    with pytest.raises(fs.NonFiniteError):
        model.fit(X, LAST)
    assert not hasattr(model, "estimator_")


def test_random_state():
    fitted = [regressor(random_state=seed).fit(X, LAST) for seed in (0, 0, 1)]
    assert same(*fitted[:2])
    assert not same(fitted[0], fitted[2])
    drawn = np.random.RandomState(3)
    one, two = (regressor(random_state=drawn).fit(X, LAST) for _ in range(2))
    assert not same(one, two)


def test_callbacks_are_copied_and_may_be_exchanged():
    class Count(fs.callbacks.Callback):
        def __init__(self):
            self.epochs = 0

        def on_epoch_end(self, run):
            self.epochs += run.row["updates"] > 0

    count, lines = Count(), []
    model = regressor(callbacks=[count, lambda run: lines.append(run.epoch)], warm_start=True)
    model.fit(X, LAST)
    model.set_params(epochs=5).fit(X, LAST)
    assert count.epochs == 0
    assert model.estimator_.callbacks[1].epochs == 5
    assert lines == [1, 2, 3, 4, 5]
    model.set_params(epochs=6, callbacks=[]).fit(X, LAST)
    assert model.continued_
    assert lines == [1, 2, 3, 4, 5]


def test_a_refit_that_fails_leaves_the_last_fit_as_it_was():
    model = classifier().fit(X, LABELS)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match="one class only"):
        model.fit(X[..., :1], np.zeros(48))
    with pytest.raises(fs.NonFiniteError):
        model.set_params(loss=lambda m, xs, _: m(xs).mean() * torch.nan).fit(X[:, :3, 1:], LABELS)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    assert model.n_features_in_ == 3


@pytest.mark.parametrize("module", ["gru", "transformer"])
def test_sequences_may_be_of_one_length_in_some_parts_only(module):
    """Such a part is the same as with a shorter sequence of no weight."""
    models = [classifier(module=module, batchsize=48, shuffle=False) for _ in range(2)]
    for model in models:
        model.partial_fit(LIST, LABELS)
    longer = list(X[:20])
    models[0].partial_fit(longer, LABELS[:20])
    models[1].partial_fit([*longer, X[20, :2]], LABELS[:21], sample_weight=[1.0] * 20 + [0.0])
    found = [model.predict_proba(LIST) for model in models]
    np.testing.assert_allclose(*found, rtol=1e-5)
    for model in models:
        model.partial_fit(longer[:1], LABELS[:1]).partial_fit(LIST, LABELS)
        assert model.n_iter_ == 4
    warm = classifier(module=module, warm_start=True).fit(LIST, LABELS)
    assert warm.set_params(epochs=6).fit(list(X), LABELS).continued_


def test_auto_goes_on_with_sequences_of_one_step():
    model = classifier(module="auto").partial_fit(X, LABELS, classes=np.unique(LABELS))
    model.partial_fit(X[:, :1], LABELS)
    assert model.module_ == "lstm-fcn"


def test_weights_of_classes_hold_for_parts_that_lack_some():
    labels = np.arange(48) % 3
    options = {"class_weight": {0: 1.0, 2: 5.0}, "shuffle": False, "batchsize": 48}
    model = classifier(**options).partial_fit(X, labels, classes=[0, 1, 2])
    other = classifier(**{**options, "class_weight": None})
    other.partial_fit(X, labels, sample_weight=np.where(labels == 2, 5.0, 1.0))
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), rtol=1e-6)
    model.partial_fit(X[labels != 2], labels[labels != 2])
    other.partial_fit(X[labels != 2], labels[labels != 2])
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), rtol=1e-6)
    with pytest.raises(ValueError, match=r"class_weight='balanced' is not possible: pass \{class"):
        classifier(class_weight="balanced").partial_fit(X, labels)
