"""Images in the scikit-learn estimators: `ImageBuilder`, "cnn", and networks of one's own."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import fastseq as fs
from fastseq.sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
BRIGHT = IMAGES[:, :3].mean((1, 2, 3))
LIGHT = np.where(np.median(BRIGHT) < BRIGHT, "light", "dark")
QUICK = {"epochs": 2, "hidden_size": 4, "batchsize": 16, "random_state": 0}


def classifier(module="cnn", **more):
    return SequenceClassifier(module, **{**QUICK, **more})


class Flat:
    """Builder that keeps what it was told, and makes a linear layer over all pixels."""

    images = True

    def __init__(self, seen=None):
        self.seen = [] if seen is None else seen

    def __deepcopy__(self, _):
        return self

    def __call__(self, n_in, n_out, rng):  # noqa: ARG002
        self.seen.append((n_in, n_out))
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(n_in)), n_out))


def test_digits_are_told_apart():
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    x, apart, y, y_apart = train_test_split(images, digits.target, random_state=0)
    for module in ("cnn", fs.builders.ImageBuilder()):
        model = SequenceClassifier(module, epochs=8, lr=0.01, random_state=0).fit(x, y)
        assert model.score(apart, y_apart) >= 0.97
        assert (model.n_features_in_, model.image_shape_) == (64, (8, 8, 1))


def test_a_network_sees_images_as_torch_has_them():
    builder = Flat()
    model = SequenceRegressor(builder, scale_x=None, scale_y=None, **QUICK).fit(IMAGES, BRIGHT)
    assert builder.seen == [((6, 5, 3), 1)]
    linear = model.estimator_.model[0][1]
    torch_s = torch.from_numpy(IMAGES).movedim(-1, 1).float()  # (N, C, W, H)
    with torch.no_grad():
        wanted = linear(torch_s.flatten(1)).squeeze(1)
    np.testing.assert_allclose(model.predict(IMAGES), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["standard", "robust"])
@pytest.mark.parametrize("weighted", [False, True])
def test_scaling_is_that_of_channels(method, weighted):
    x = IMAGES * np.array([1, 2, 0], np.uint8) // 2 + np.array([0, 0, 7], np.uint8)
    w = np.r_[np.zeros(10), np.ones(30)] if weighted else None
    model = classifier(scale_x=method).fit(x, LIGHT, w)
    values = x[10:] if weighted else x
    if method == "standard":
        center, scale = values.mean((0, 1, 2)), values.std((0, 1, 2))
    else:
        low, center, high = np.quantile(values, [0.25, 0.5, 0.75], (0, 1, 2))
        scale = (high - low) / 1.349
    scale[2] = 1  # the same everywhere
    plain = classifier(scale_x=None).fit((x - center) / scale, LIGHT, w)
    np.testing.assert_allclose(
        model.predict_proba(x), plain.predict_proba((x - center) / scale), rtol=2e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    "of",
    [lambda x: x.astype(np.float32), lambda x: x.astype(np.int64), torch.from_numpy,
     lambda x: x.tolist(), list, lambda x: np.asfortranarray(x)],
    ids=["f4", "i8", "tensor", "nested", "list", "fortran"],
)  # fmt: skip
def test_images_of_any_kind_are_the_same(of):
    wanted = classifier().fit(IMAGES, LIGHT).predict_proba(IMAGES)
    np.testing.assert_allclose(
        classifier().fit(of(IMAGES), LIGHT).predict_proba(of(IMAGES)), wanted, rtol=1e-4, atol=1e-5
    )
    first = np.ascontiguousarray(np.moveaxis(IMAGES, 3, 1))
    model = classifier(channels_first=True).fit(first, LIGHT)
    np.testing.assert_array_equal(model.predict_proba(first), wanted)


def test_images_of_one_channel_need_no_axis_for_it():
    grey = IMAGES[..., 0]
    model = classifier().fit(grey, LIGHT)
    wanted = classifier().fit(grey[..., None], LIGHT).predict_proba(grey[..., None])
    np.testing.assert_array_equal(model.predict_proba(grey), wanted)
    np.testing.assert_array_equal(model.predict_proba(grey[..., None]), wanted)
    listed = classifier().fit(list(grey), LIGHT)
    np.testing.assert_array_equal(listed.predict_proba(list(grey)), wanted)
    first = classifier(channels_first=True).fit(grey, LIGHT)  # has no axis of channels
    np.testing.assert_array_equal(first.predict_proba(grey[:, None]), wanted)


class Net(nn.Module):
    """A network of one's own, which is told sizes by name."""

    images = True

    def __init__(self, n_in, n_out, hidden_size):
        super().__init__()
        self.conv = nn.Conv2d(n_in[2], hidden_size, 3)
        self.out = nn.Linear(hidden_size, n_out)

    def forward(self, x):
        return self.out(self.conv(x).amax((2, 3)))


def test_modules_and_classes_may_be_for_images():
    made = classifier(Net).fit(IMAGES, LIGHT)
    assert made.estimator_.model[0].conv.out_channels == 4
    torch.manual_seed(0)
    given = classifier(Net((6, 5, 3), 2, 4)).fit(IMAGES, LIGHT)
    assert given.predict_proba(IMAGES).shape == (40, 2)
    unfinished = nn.Conv2d(3, 2, 1)
    unfinished.images = True
    with pytest.raises(ValueError, match=r"must return \(N, K\), got \(\d+, 2, 6, 5\) .*Flatten"):
        classifier(unfinished).fit(IMAGES, LIGHT)


def test_what_else_works_with_images():
    w = np.r_[np.zeros(8), np.ones(32)]
    y = IMAGES[:, 0, 0, :2].astype(float)
    model = SequenceRegressor("cnn", validation_fraction=0.2, **QUICK).fit(IMAGES, y, w)
    assert model.predict(IMAGES).shape == (40, 2)
    assert np.isfinite(model.history_[-1]["validation_loss"])
    again = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own)
    np.testing.assert_array_equal(again.predict(IMAGES), model.predict(IMAGES))
    tiny = classifier(num_layers=3).fit(IMAGES[:, :2, :3], LIGHT)  # too small for some pools
    assert np.isfinite(tiny.predict_proba(IMAGES[:, :2, :3])).all()
    shares = [0, 1, 5]
    np.testing.assert_allclose(
        tiny.predict_proba(IMAGES[shares, :2, :3]),
        tiny.predict_proba(IMAGES[:, :2, :3])[shares], rtol=1e-5,
    )  # fmt: skip


def test_missing_pixels_are_the_mean_of_their_channel():
    x = IMAGES.astype(np.float64)
    x[RNG.random(x.shape) < 0.1] = np.nan
    model = classifier(nan="mask").fit(x, LIGHT)
    filled = np.where(np.isnan(x), np.nanmean(x, (0, 1, 2)), x)
    np.testing.assert_allclose(model.predict_proba(x), model.predict_proba(filled), rtol=1e-6)


def test_models_of_images_are_saved_without_code(tmp_path):
    model = classifier().fit(IMAGES, LIGHT).estimator_
    model.save(tmp_path / "net.safetensors")
    again = fs.Estimator.load(tmp_path / "net.safetensors")
    x = IMAGES.reshape(1, 40, -1)
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    assert repr(again.model) == repr(model.model)


def test_a_warm_start_needs_images_of_the_same_shape():
    model = classifier(warm_start=True).fit(IMAGES, LIGHT)
    assert model.set_params(epochs=3).fit(IMAGES, LIGHT).continued_
    model.partial_fit(IMAGES, LIGHT)
    with pytest.raises(ValueError, match=r"images .* = \(5, 6, 3\), but .* fitted on \(6, 5, 3\)"):
        model.partial_fit(IMAGES.swapaxes(1, 2), LIGHT)
    model.set_params(epochs=5).fit(IMAGES.swapaxes(1, 2), LIGHT)
    assert not model.continued_
    assert model.image_shape_ == (5, 6, 3)
    assert model.set_params(module="gru").fit(IMAGES[..., 0], LIGHT).image_shape_ is None


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        (IMAGES[:, 0, :, 0], LIGHT, {}, r"must be images, \(N, W, H, C\) or \(N, W, H\), got"),
        (IMAGES[:, :0], LIGHT, {}, "must be images"),
        (IMAGES[..., None], LIGHT, {"channels_first": True}, r"must be images, \(N, C, W, H\)"),
        (np.full((4, 3, 3), np.nan), LIGHT[:4], {}, "NaN"),
        (IMAGES, LIGHT[:, None, None], {}, "one target per image"),
        (IMAGES, LIGHT, {"scale_x": "instance"}, "scale_x='instance' needs"),
        (IMAGES, LIGHT, {"pool": "mean"}, "pool is for"),
        (IMAGES, LIGHT, {"module": "lstm"}, 'images need module="cnn"'),
        (IMAGES, LIGHT[:7], {}, "inconsistent"),
        ([IMAGES[0], IMAGES[1, 1:]], [0, 1], {}, "of one size, got"),
        (IMAGES, LIGHT, {"hidden_size": 0}, "hidden_size must be at least 1"),
    ],
)
def test_what_does_not_fit_images(x, y, more, message):
    with pytest.raises(ValueError, match=message):
        classifier(**more).fit(x, y)


@pytest.mark.parametrize("of", [list, lambda frames: pd.concat(frames, keys=range(len(frames)))])
def test_data_frames_are_no_images(of):
    frames = [pd.DataFrame(image[..., 0]).assign(name="a") for image in IMAGES]
    with pytest.raises(TypeError, match=r"must be images, .* but it holds data frames"):
        classifier().fit(of(frames), LIGHT)


def test_other_images_than_in_fit_are_told():
    model = classifier().fit(IMAGES, LIGHT)
    for x in (IMAGES.swapaxes(1, 2), IMAGES[..., :1], IMAGES[:, :, :, 0]):
        with pytest.raises(ValueError, match=r"X has images .*, but SequenceClassifier was fitted"):
            model.predict(x)


def test_channels_that_seem_to_come_first_are_warned_of():
    first = np.ascontiguousarray(np.moveaxis(IMAGES, 3, 1))
    with pytest.warns(UserWarning, match=r"images of 3 × 6 pixels with 5 channels: .*\(N, C, W, H"):
        classifier().fit(first, LIGHT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier(channels_first=True, epochs=40).fit(first, LIGHT)


@pytest.mark.parametrize("module", ["cnn", fs.builders.ImageBuilder()])
def test_forecasters_have_no_images(module):
    with pytest.raises(ValueError, match="looks at images, and forecasts nothing"):
        SequenceForecaster(3, module=module).fit(np.arange(30.0))
