"""`SequenceRegressor`: numbers from sequences, the scikit-learn way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from torch import Tensor, nn, optim

from .automatic_training import WHOLE
from .base import Task
from .files.predictor_files import PredictorFiles
from .inputs.input_checks import Array, Inputs, Items
from .losses_and_optimizers import loss_over_chunks
from .supervised import Problem
from .targets.target_forms import Targets, read_targets

__all__ = ["SequenceRegressor"]

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


class SequenceRegressor(RegressorMixin, PredictorFiles):  # type: ignore[misc]
    """Scikit-learn regressor for sequences, or for rows of a table.

    Samples come first: X is ``(N, T, F)``, N sequences of T steps with F features, or a list of
    ``(T_i, F)`` or ``(T_i,)``. An array or data frame ``(N, T)`` is N series of one feature. For
    "mlp", "linear" and modules of your own it is a table, N samples of one step with F features,
    and so is a data frame with text, or words as names of columns, for ``module="auto"``. A data
    frame whose index has two levels, sequence and time, holds a sequence in several rows, except
    for "mlp" and "linear". For "cnn", X is N images, ``(N, W, H, C)`` or ``(N, W, H)``.

    X may also be a dataset in a file, ``(N, T, F)`` or ``(N, T)``: of HDF5, also one that
    `fastseq.h5mmap` opens, or of zarr. It is read in batches. A sequence with a missing value
    raises `NonFiniteError` when it is read, unless ``nan="mask"``. If it is not contiguous in its
    file, random orders are random within windows of about 30 MB, made of pieces from random places.

    In data frames, also in a list of ``(T_i, F)``, columns of categories, booleans, and text or
    objects that are not all numbers are embedded: the module gets the numbers, then for each column
    of n categories ``min(50, round(1.6 · n^0.56))`` features. These are 0 for missing values and
    for categories that training did not see.

    y is one target per sequence, ``(N,)`` or ``(N, K)``, compared with the module's output at the
    sequence's last step; or one per step, ``(N, T)``, ``(N, T, K)`` or a list of ``(T_i,)`` or
    ``(T_i, K)``.

    Computes in double precision if X has it, else in single precision. Data are scaled before, in
    double precision; predictions are in double precision if X or y is.

    Parameters
    ----------
    module
        The model: ``"lstm"``, ``"gru"``, ``"rnn"``; ``"lstm-fcn"``, ``"inception"``, ``"tcn"``,
        ``"transformer"`` or ``"rocket"``, a linear model on random convolutions, which look at
        whole sequences, see `fastseq.nn`; ``"cnn"``, for images, see
        `fastseq.nn.builders.ImageBuilder`; ``"mlp"`` or ``"linear"``, which take a whole sequence
        as one input if it has one target, else each step alone; several of the first eight, joined
        by "+", whose outputs are averaged; ``"auto"``: "lstm-fcn+rocket", but "lstm-fcn" for
        sequences of fewer than 9 steps, "mlp" for those of one step, and "lstm" where each step has
        a target or `seqsize` cuts the sequences; a `torch.nn.Module`, which is copied; a class of
        modules, called with the arguments among ``n_in``, ``n_out``, ``hidden_size``,
        ``num_layers``, ``dropout`` and ``bidirectional`` that its constructor has (also as
        ``input_size``, ``output_size``); or a builder, ``builder(n_in, n_out, rng)``, see
        `fastseq.nn.builders`. Modules are time-major, ``(T, N, F)`` to ``(T, N, K)``; with one
        target per sequence also to ``(N, K)``. Modules and builders with an attribute
        ``num_embeddings``, as `torch.nn.Embedding` has it, look up so many ids: X then holds
        integers, which are not scaled, and ``(N, T)`` is N sequences; for texts see
        `fastseq.huggingface`.
    hidden_size, num_layers, dropout
        Width and number of hidden layers, and their dropout rate. None: 1 layer, of "inception" 3
        blocks, of "tcn" 4, of "cnn" 2, of "transformer" 2 layers. Each block of "cnn" is twice as
        wide as the one before. "rocket" has no hidden layer; dropout is that of its features.
    bidirectional
        Whether "lstm", "gru" and "rnn" also run from the ends of sequences to their starts.
    pool
        How outputs at the steps of a sequence are summarised, if it has one target: ``"last"``,
        ``"mean"``, ``"max"``, or several joined by "+", see `fastseq.nn.Pool`. None: "last" of
        "lstm", "gru" and "rnn", "mean" of "inception", "last+mean+max" of the others.
    loss
        ``"mse"``, ``"mae"``, ``"huber"``; a loss as a function, module or class of modules, such as
        `torch.nn.SmoothL1Loss`; or one over chunks, ``loss(m, xs, ys)``, see `Estimator`.
    optimizer
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"rmsprop"``; a class; or a callable
        ``optimizer(params, lr=…, weight_decay=…)``.
    lr, weight_decay
        Learning rate and weight decay. None: 0.01, of "transformer" 0.002, of your own modules and
        without a schedule 0.001; and no decay, of "rocket" with "adamw" 1.
    schedule
        How the learning rate changes over all updates of `fit`: ``"onecycle"``, up to `lr` in their
        first tenth and down to nearly 0; ``"cosine"``, from `lr` to 0; or None, not at all, as in
        `partial_fit`.
    decay_biases
        False: biases do not decay.
    epochs
        Total passes over the data, including those of earlier calls with `warm_start`. None: as
        many as make 600 updates of the weights, or 20, if these are no more than 3000 updates;
        with `warm_start`, these again.
    batchsize
        Sequences trained together.
    seqsize
        Time steps that gradients reach back. None: all steps if there is one target per sequence,
        or the module is one of your own without a state; else at most 100.
    shuffle
        Put the samples in a new random order each epoch; samples of different lengths so that those
        trained together have similar lengths.
    clip_norm, clip_value, accumulate
        See `Spec`.
    channels_first
        Whether X is ``(N, F, T)``, a list of ``(F, T_i)``, or images ``(N, C, W, H)``, as in aeon,
        sktime and tsai; targets per step stay ``(N, T)``.
    nan
        What to do with NaN and infinities: ``"raise"``, or ``"mask"``: treat them as missing. After
        scaling, missing inputs are 0, the feature's mean. Training leaves out sequences, with
        targets per step steps, of which nothing is known; it and scores leave out missing targets.
    scale_x
        How to scale inputs: by statistics of the training data, ``"standard"`` or ``"robust"``, see
        `Spec`; ``"instance"``: each sequence by its own mean and deviation, so that only shapes
        count; ``"both"``: the module gets "robust", of which arsinh is taken, and "instance" side
        by side, 2F features; None: not at all. "instance" and "both" need one target per sequence.
        ``"auto"``: "standard", but "both" where ``module="auto"`` chooses "lstm-fcn", with
        "rocket" or without.
    scale_y
        How to scale targets, by statistics of the training data: ``"standard"``, ``"robust"`` or
        None. Predictions are in the targets' units, losses are not.
    per_step
        Whether targets ``(N, T)``, if T is the number of steps, are one per step; None: they are.
    early_stopping
        Whether to keep the weights of the epoch with the least loss on samples held out, a tenth of
        all if `validation_fraction` is None, and without a `schedule` to stop after 10 epochs that
        were no better; a schedule's last epochs are the best ones mostly. ``"auto"``: with more
        than 10,000 samples. `partial_fit` does not.
    validation_fraction
        Fraction of the samples to hold out for ``validation_loss`` in the history: drawn at
        random, or the last ones if `shuffle` is false. None: none.
    callbacks
        See `Estimator`; each cold start uses copies of those that are `callbacks.Callback`.
    amp, compile, device
        See `Estimator`.
    comm
        The ranks that train together. None: this process alone, so that searches and ``n_jobs``
        can run anywhere; ``"auto"``: all that the launcher started, which must then all make the
        same calls.
    random_state
        Seed of weights, order and dropout, or a generator to draw it; see scikit-learn's glossary.
    warm_start
        Whether `fit` continues the last one. It does if the data have the same form and nothing has
        changed but `epochs`, which may grow, `optimizer`, `lr`, `weight_decay`, `decay_biases`,
        `schedule`, `callbacks` and `verbose`; without a schedule, two calls give the same result
        as one.
    verbose
        0: `fit` says nothing. 1: it shows a progress bar, and prints whether it continues or starts
        from scratch. 2: a line for each epoch with all its figures instead of the bar.

    Attributes
    ----------
    estimator_
        The trained `Estimator`; its ``model`` is the module.
    history_
        The `History` of training, epoch by epoch.
    n_iter_
        Number of epochs trained.
    module_
        What ``module="auto"`` chose; else `module`.
    continued_
        Whether the last `fit` continued the one before.
    n_features_in_, feature_names_in_
        F, of an array or data frame with two axes the number of columns, of images W · H · C; and
        the columns' names.
    rows_
        What the rows of an array or data frame with two axes were: ``"series"`` of one feature, or
        ``"samples"`` of one step; None: `fit` got something else.
    image_shape_
        ``(W, H, C)`` of images; None of sequences.
    column_labels_
        Labels of a data frame's columns that are not all text, such as times; None: there were
        none, or they are all text.

    Raises
    ------
    MissingFeatureError
        scikit-learn is not installed (when it is imported). Hyperparameters are checked in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastseq.sklearn import SequenceRegressor
    >>> X = np.random.default_rng(0).standard_normal((60, 10, 3))
    >>> y = X[:, -3:].sum((1, 2))
    >>> model = SequenceRegressor("gru", lr=0.02, epochs=30, random_state=0).fit(X, y)
    >>> model.predict(X).shape, bool(model.score(X, y) > 0.8)
    ((60,), True)
    """

    _KIND = "regressor"

    def __init__(
        self,
        module: str | nn.Module | Callable[..., nn.Module] = "auto",
        *,
        hidden_size: int = 32,
        num_layers: int | None = None,
        dropout: float = 0.0,
        bidirectional: bool = False,
        pool: str | None = None,
        loss: str | Callable[..., Tensor] | type[nn.Module] = "mse",
        optimizer: str | Callable[..., optim.Optimizer] = "adamw",
        lr: float | None = None,
        schedule: str | None = "onecycle",
        weight_decay: float | None = None,
        decay_biases: bool = True,
        epochs: int | None = None,
        batchsize: int = 32,
        seqsize: int | None = None,
        shuffle: bool = True,
        clip_norm: float | None = 1.0,
        clip_value: float | None = None,
        accumulate: int = 1,
        channels_first: bool = False,
        nan: str = "raise",
        scale_x: str | None = "auto",
        scale_y: str | None = "standard",
        per_step: bool | None = None,
        early_stopping: bool | str = "auto",
        validation_fraction: float | None = None,
        callbacks: Sequence[object] = (),
        amp: str | None = None,
        compile: bool = False,  # noqa: A002 (what PyTorch calls it)
        device: str | torch.device = "auto",
        comm: object = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: bool | int = 0,
    ) -> None:
        self.module = module
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.pool = pool
        self.loss = loss
        self.optimizer = optimizer
        self.lr = lr
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.decay_biases = decay_biases
        self.epochs = epochs
        self.batchsize = batchsize
        self.seqsize = seqsize
        self.shuffle = shuffle
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.accumulate = accumulate
        self.channels_first = channels_first
        self.nan = nan
        self.scale_x = scale_x
        self.scale_y = scale_y
        self.per_step = per_step
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks
        self.amp = amp
        self.compile = compile
        self.device = device
        self.comm = comm
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def fit(
        self, X: object, y: object, sample_weight: object = None, *, static: object = None  # noqa: N803
    ) -> SequenceRegressor:  # fmt: skip
        """Train.

        Parameters
        ----------
        X, y
            Samples and targets; see the class.
        sample_weight
            Weights ``(N,)``, not negative; with targets per step also ``(N, T)`` or a list of
            ``(T_i,)``.
        static
            Static features ``(N, S)``, an array or a data frame: one row for each sequence, in
            their order. The module gets them at each step, after the numbers of X; "mlp" and
            "linear" once. Categories are embedded, numbers scaled to mean 0 and deviation 1,
            whatever `scale_x` is; with ``nan="mask"`` they may be missing.

        Returns
        -------
        SequenceRegressor
            This estimator.

        Raises
        ------
        ValueError, TypeError
            Data or hyperparameters are invalid.
        NonFiniteError
            The loss became NaN or infinite; or X is a dataset in a file, and holds a missing value.

        Examples
        --------
        Two targets per sequence, weights of samples, and a static feature:

        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceRegressor
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> height = np.arange(40.0).reshape(-1, 1)
        >>> y = np.stack([X[:, -1, 0], height[:, 0]], axis=1)
        >>> model = SequenceRegressor("gru", epochs=2, random_state=0)
        >>> model = model.fit(X, y, sample_weight=np.linspace(0.5, 1, 40), static=height)
        >>> model.predict(X, static=height).shape
        (40, 2)
        """
        self._learn(X, y, sample_weight, static)
        return self

    def partial_fit(
        self, X: object, y: object, sample_weight: object = None, *, static: object = None  # noqa: N803
    ) -> SequenceRegressor:  # fmt: skip
        """Train for one more epoch; see `fit`.

        The first call fixes how inputs are scaled and what "rocket" compares its convolutions with:
        its samples should be like those to come.

        Parameters
        ----------
        X, y, sample_weight, static
            As in `fit`. Categories that the first call did not see stay unseen.

        Returns
        -------
        SequenceRegressor
            This estimator.

        Raises
        ------
        ValueError, TypeError
            Data or hyperparameters are invalid; or since the first call the form of the data or
            hyperparameters changed, but for those that `warm_start` allows to change.
        NonFiniteError
            The loss became NaN or infinite; or X is a dataset in a file, and holds a missing value.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceRegressor
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = X[:, -1].sum(1)
        >>> model = SequenceRegressor("gru", random_state=0).partial_fit(X[:20], y[:20])
        >>> model.partial_fit(X[20:], y[20:]).n_iter_
        2
        """
        self._learn(X, y, sample_weight, static, partial=True)
        return self

    def predict(self, X: object, *, static: object = None) -> Any:  # noqa: N803
        """Return predictions in the form of the targets passed to `fit`.

        Parameters
        ----------
        X, static
            Samples and static features, as in `fit`.

        Returns
        -------
        numpy.ndarray or list
            ``(N,)`` or ``(N, K)``; per step ``(N, T)`` or ``(N, T, K)``, or, for a list of
            sequences, a list of ``(T_i,)`` or ``(T_i, K)``. In the units of the targets.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            X or `static` are invalid, or have another form than in `fit`.
        NonFiniteError
            X is a dataset in a file, and holds a missing value.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceRegressor
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = X[:, -1].sum(1)
        >>> model = SequenceRegressor("gru", epochs=20, random_state=0).fit(X, y)
        >>> model.predict(X).shape, model.predict(X[:1]).shape
        ((40,), (1,))
        """
        outputs = self._outputs(X, static)
        return self._form_of_targets.restored(outputs)

    def score(
        self, X: object, y: object, sample_weight: object = None, *, static: object = None  # noqa: N803
    ) -> float:  # fmt: skip
        """Return R² of the predictions, over all steps if each has a target.

        For several targets it is their mean R². Missing values do not count, nor do targets of
        which all are missing.

        Parameters
        ----------
        X, y, sample_weight, static
            Samples, their true targets, weights and static features, as in `fit`. Weights None: all
            count alike.

        Returns
        -------
        float
            1 is perfect; the mean of the targets gets 0.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data are invalid, or have another form than in `fit`; all weights are 0, or all
            targets are missing.
        NonFiniteError
            X is a dataset in a file, and holds a missing value.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceRegressor
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = X[:, -1].sum(1)
        >>> model = SequenceRegressor("gru", epochs=20, random_state=0).fit(X, y)
        >>> bool(model.score(X, y) > 0.5)
        True
        """
        truth, predicted, weights = self._compared(X, y, sample_weight, static)
        # In single precision, squared differences may overflow or lose digits.
        truth, predicted = truth.astype(float, copy=False), predicted.astype(float, copy=False)
        scores = []
        for known, true, found in zip(np.isfinite(truth.T), truth.T, predicted.T, strict=True):
            if not known.any():
                continue
            weight = None if weights is None else weights[known]
            scores.append(r2_score(true[known], found[known], sample_weight=weight))
        if not scores:
            raise ValueError("y has no value that is not missing: there is nothing to score")
        return float(np.mean(scores))

    def _pool_of(self, task: Task) -> str | None:
        # Numbers depend on levels and extremes more than classes do.
        plain = self.pool is None and task.per_sequence and task.module in WHOLE
        return "last+mean+max" if plain else self.pool

    def _read_y(self, y: object, inputs: Inputs) -> Targets:
        return read_targets(y, inputs, self.per_step, numeric=True, nan=self.nan)

    def _problem(
        self,
        targets: Targets,
        weights: Items | None,
        known: list[Array] | None,  # noqa: ARG002
    ) -> Problem:
        return Problem(
            targets.y,
            targets.form.count,
            loss_over_chunks(self.loss, _LOSSES),
            targets.form,
            weights,
            scale_y=self.scale_y,
        )
