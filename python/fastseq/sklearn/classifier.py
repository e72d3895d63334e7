"""`SequenceClassifier`: classes from sequences, the scikit-learn way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.metaestimators import available_if
from torch import Tensor, nn, optim

from ..callbacks.classification_report import ClassificationReport
from ..estimator import Estimator
from .base import Task
from .files.predictor_files import PredictorFiles
from .inputs.input_checks import Array, Inputs, Items
from .supervised import Problem
from .targets.class_kinds import (
    Classes,
    ClassKind,
    Labels,
    check_label_classes,
    read_classes,
    shown,
    warn_if_one_hot,
    warn_if_raveled,
    weighted,
)
from .targets.ordinal_classes import Ordinal, order_of, read_order
from .targets.target_forms import Targets, read_targets

__all__ = ["SequenceClassifier"]


class SequenceClassifier(ClassifierMixin, PredictorFiles):  # type: ignore[misc]
    """Scikit-learn classifier for sequences, or for rows of a table.

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

    y holds labels of any dtype: one per sequence, ``(N,)``, or several, ``(N, K)``, predicted from
    the module's output at the sequence's last step; or one per step, ``(N, T)``, ``(N, T, K)`` or
    a list of ``(T_i,)`` or ``(T_i, K)``. ``(N, 1)`` is taken as ``(N,)``. Each target has its own
    classes, of which exactly one is true. With ``loss="binary_cross_entropy"``, y is L labels, 0 or
    1 each, of which any number may be true: ``(N, L)``, per step ``(N, T, L)``. With
    ``loss="ordinal"``, classes have an order.

    Computes in double precision if X has it, else in single precision.

    Parameters
    ----------
    module
        The model: ``"lstm"``, ``"gru"``, ``"rnn"``; ``"lstm-fcn"``, ``"inception"``, ``"tcn"``,
        ``"transformer"`` or ``"rocket"``, a linear model on random convolutions, which look at
        whole sequences, see `fastseq.nn`; ``"cnn"``, for images, see
        `fastseq.nn.builders.ImageBuilder`; ``"mlp"`` or ``"linear"``, which take a whole sequence
        as one input if it has one target, else each step alone; several of the first eight, joined
        by "+", whose probabilities are averaged; ``"auto"``: "lstm-fcn+rocket", but "lstm-fcn" for
        sequences of fewer than 9 steps, "mlp" for those of one step, and "lstm" where each step has
        a target or `seqsize` cuts the sequences; a `torch.nn.Module`, which is copied; a class of
        modules, called with the arguments among ``n_in``, ``n_out``, ``hidden_size``,
        ``num_layers``, ``dropout`` and ``bidirectional`` that its constructor has (also as
        ``input_size``, ``output_size``); or a builder, ``builder(n_in, n_out, rng)``, see
        `fastseq.nn.builders`. Modules are time-major, ``(T, N, F)`` to ``(T, N, K)``; with one
        label per sequence also to ``(N, K)``. Modules and builders with an attribute
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
        "lstm", "gru" and "rnn", "mean" of "lstm-fcn" and "inception", "last+mean+max" of "tcn" and
        "transformer".
    loss
        ``"cross_entropy"``; ``"focal"``, in which well-classified samples count little, see
        `fastseq.nn.FocalLoss`; ``"binary_cross_entropy"`` for several labels; ``"ordinal"`` for a
        target whose classes have an order, that of an ordered pandas Categorical, else sorted, see
        `fastseq.nn.OrdinalLogProbabilities`: the module then has one output less than there are
        classes, and `predict` returns the median (`callbacks.Metrics` get the most probable class).
        Also a loss of scores ``(M, C)`` and class numbers ``(M,)``, as a function, module or class
        of modules, such as ``torch.nn.CrossEntropyLoss(label_smoothing=0.1)``, which is averaged
        over several targets; or one over chunks, ``loss(m, xs, ys)``, see `Estimator`.
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
        What to do with NaN and infinities: ``"raise"``, or ``"mask"``: treat those in X as missing.
        After scaling they are 0, the feature's mean. Training leaves out sequences, with labels per
        step steps, of which nothing is known.
    scale_x
        How to scale inputs: by statistics of the training data, ``"standard"`` or ``"robust"``, see
        `Spec`; ``"instance"``: each sequence by its own mean and deviation, so that only shapes
        count; ``"both"``: the module gets "robust", of which arsinh is taken, and "instance" side
        by side, 2F features; None: not at all. "instance" and "both" need one target per sequence.
        ``"auto"``: "standard", but "both" where ``module="auto"`` chooses "lstm-fcn", with
        "rocket" or without.
    class_weight
        Weights of classes, ``{class: weight}``, for several targets a list of them; or
        ``"balanced"``: rare classes count more, so that all have the same total weight. Of several
        labels: weights ``{0: …, 1: …}`` of all, or a list of them, which multiply a label's losses;
        "balanced" makes 0 and 1 of each label equal.
    per_step
        Whether targets ``(N, T)``, if T is the number of steps, are one per step; None: they are.
    early_stopping
        Whether to keep the weights of the epoch with the least loss on samples held out, a tenth of
        all if `validation_fraction` is None, and without a `schedule` to stop after 10 epochs that
        were no better; a schedule's last epochs are the best ones mostly. ``"auto"``: with more
        than 10,000 samples. `partial_fit` does not.
    validation_fraction
        Fraction of the samples to hold out for ``validation_loss`` in the history: drawn at
        random, the same fraction of each class if there is one target per sequence, and room for
        all classes; the last ones if `shuffle` is false. None: none.
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
        The trained `Estimator`; its ``model`` is the module, with ``loss="ordinal"`` followed by
        `fastseq.nn.OrdinalLogProbabilities`.
    classes_
        The classes, sorted, also if they have another order; for several targets a list of them,
        for L labels ``(L, 2)``, 0 and 1 of each.
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
    >>> from fastseq.sklearn import SequenceClassifier
    >>> X = np.random.default_rng(0).standard_normal((60, 10, 3))
    >>> y = np.where(X[:, -3:].sum((1, 2)) > 0, "up", "down")
    >>> model = SequenceClassifier("gru", lr=0.02, epochs=30, random_state=0).fit(X, y)
    >>> model.predict(X)[:2], model.predict_proba(X).shape, bool(model.score(X, y) > 0.9)
    (array(['up', 'down'], dtype='<U4'), (60, 2), True)
    """

    _KIND = "classifier"

    _kind: ClassKind

    def __init__(
        self,
        module: str | nn.Module | Callable[..., nn.Module] = "auto",
        *,
        hidden_size: int = 32,
        num_layers: int | None = None,
        dropout: float = 0.0,
        bidirectional: bool = False,
        pool: str | None = None,
        loss: str | Callable[..., Tensor] | type[nn.Module] = "cross_entropy",
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
        class_weight: object = None,
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
        self.class_weight = class_weight
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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        of_labels = self.loss == "binary_cross_entropy"
        tags.classifier_tags.multi_label = of_labels
        tags.classifier_tags.multi_class = not of_labels
        tags.target_tags.single_output = not of_labels
        tags.target_tags.multi_output = self.loss != "ordinal"
        return tags

    def fit(
        self, X: object, y: object, sample_weight: object = None, *, static: object = None  # noqa: N803
    ) -> SequenceClassifier:  # fmt: skip
        """Train.

        Parameters
        ----------
        X, y
            Samples and labels; see the class.
        sample_weight
            Weights ``(N,)``, not negative; with labels per step also ``(N, T)`` or a list of
            ``(T_i,)``.
        static
            Static features ``(N, S)``, an array or a data frame: one row for each sequence, in
            their order. The module gets them at each step, after the numbers of X; "mlp" and
            "linear" once. Categories are embedded, numbers scaled to mean 0 and deviation 1,
            whatever `scale_x` is; with ``nan="mask"`` they may be missing.

        Returns
        -------
        SequenceClassifier
            This estimator.

        Raises
        ------
        ValueError, TypeError
            Data or hyperparameters are invalid, or there is only one class.
        NonFiniteError
            The loss became NaN or infinite; or X is a dataset in a file, and holds a missing value.

        Examples
        --------
        Sequences of different lengths, with a label at each step:

        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceClassifier
        >>> rng = np.random.default_rng(0)
        >>> X = [rng.standard_normal((steps, 3)) for steps in (9, 5, 7, 8)]
        >>> y = [np.where(x[:, 0] > 0, "up", "down") for x in X]
        >>> model = SequenceClassifier(epochs=5, random_state=0).fit(X, y)
        >>> [labels.shape for labels in model.predict(X)], len(model.history_)
        ([(9,), (5,), (7,), (8,)], 5)
        """
        self._learn(X, y, sample_weight, static)
        return self

    def partial_fit(
        self,
        X: object,  # noqa: N803
        y: object,
        classes: Any = None,
        sample_weight: object = None,
        *,
        static: object = None,
    ) -> SequenceClassifier:
        """Train for one more epoch; see `fit`.

        The first call fixes how inputs are scaled and what "rocket" compares its convolutions with:
        its samples should be like those to come.

        Parameters
        ----------
        X, y, sample_weight, static
            As in `fit`. Categories that the first call did not see stay unseen.
        classes
            All labels that may ever occur, for several targets a list of them; needed in the first
            call if its `y` lacks some; later calls may repeat them. With ``loss="ordinal"`` in
            their order if they are an ordered pandas Categorical.

        Returns
        -------
        SequenceClassifier
            This estimator.

        Raises
        ------
        ValueError, TypeError
            Data or hyperparameters are invalid; since the first call the form of the data, the
            classes, or hyperparameters changed, but for those that `warm_start` allows to change;
            or `class_weight` is "balanced".
        NonFiniteError
            The loss became NaN or infinite; or X is a dataset in a file, and holds a missing value.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = np.where(X[:, -1].sum(1) > 0, "up", "down")
        >>> model = SequenceClassifier("gru", random_state=0)
        >>> model = model.partial_fit(X[:20], y[:20], classes=["down", "up"])
        >>> model.partial_fit(X[20:], y[20:]).n_iter_
        2
        """
        if isinstance(self.class_weight, str):
            labels = self.loss == "binary_cross_entropy"
            given = "a list of {0: …, 1: …}, one for each label" if labels else "{class: weight}"
            raise ValueError(
                f"partial_fit does not know all labels, so class_weight={self.class_weight!r} is "
                f"not possible: pass {given}"
            )
        known = None if classes is None else self._read_classes(classes)
        if hasattr(self, "estimator_"):
            before = self._kind.known
            if known is not None and before is not None and (
                [a.tolist() for a in known] != [a.tolist() for a in before]
            ):  # fmt: skip
                raise ValueError(
                    "partial_fit cannot continue with classes other than those of the first call, "
                    f"{', '.join(map(shown, before))}; call fit"
                )
            known = before
        self._learn(X, y, sample_weight, static, partial=True, known=known)
        return self

    def predict(self, X: object, *, static: object = None) -> Any:  # noqa: N803
        """Return the most probable classes, in the form of the labels passed to `fit`.

        With ``loss="ordinal"`` the medians; with ``loss="binary_cross_entropy"`` 1 for each label
        that is more probable than not, else 0.

        Parameters
        ----------
        X, static
            Samples and static features, as in `fit`.

        Returns
        -------
        numpy.ndarray or list
            ``(N,)`` or ``(N, K)``; per step ``(N, T)`` or ``(N, T, K)``, or, for a list of
            sequences, a list of ``(T_i,)`` or ``(T_i, K)``.

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
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = np.where(X[:, -1].sum(1) > 0, "up", "down")
        >>> model = SequenceClassifier("gru", epochs=40, random_state=0).fit(X, y)
        >>> model.predict(X[:3])
        array(['down', 'down', 'up'], dtype='<U4')
        """
        return self._labels(self._outputs(X, static))

    def predict_proba(self, X: object, *, static: object = None) -> Any:  # noqa: N803
        """Return the probabilities of all classes, in the order of `classes_`.

        Parameters
        ----------
        X, static
            Samples and static features, as in `fit`.

        Returns
        -------
        numpy.ndarray or list
            ``(N, C)``; per step ``(N, T, C)``, or, for a list of sequences, a list of
            ``(T_i, C)``. For several targets a list with one of these for each. For L labels the
            probabilities of their 1s, ``(N, L)`` and so on.

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
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = np.where(X[:, -1].sum(1) > 0, "up", "down")
        >>> model = SequenceClassifier("gru", epochs=40, random_state=0).fit(X, y)
        >>> model.predict_proba(X[:2]).sum(1), model.classes_
        (array([1., 1.]), array(['down', 'up'], dtype='<U4'))
        """
        return self._probabilities(self._outputs(X, static))

    def predict_and_proba(
        self, X: object, *, static: object = None  # noqa: N803
    ) -> tuple[Any, Any]:  # fmt: skip
        """Return what `predict` and `predict_proba` return, at the cost of one of them.

        Parameters
        ----------
        X, static
            Samples and static features, as in `fit`.

        Returns
        -------
        tuple
            Classes, as `predict` returns them, and probabilities, as `predict_proba` does.

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
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = np.where(X[:, -1].sum(1) > 0, "up", "down")
        >>> model = SequenceClassifier("gru", epochs=40, random_state=0).fit(X, y)
        >>> labels, probabilities = model.predict_and_proba(X)
        >>> labels.shape, probabilities.shape
        ((40,), (40, 2))
        """
        outputs = self._outputs(X, static)
        return self._labels(outputs), self._probabilities(outputs)

    @property
    def _labelled(self) -> bool:
        return isinstance(self._kind, Labels)

    def _labels(self, outputs: Items) -> Items:
        labels = self._kind.labels
        found = list(map(labels, outputs)) if isinstance(outputs, list) else labels(outputs)
        return self._form_of_targets.restored(found)

    def _probabilities(self, outputs: Items) -> Any:
        probabilities = self._kind.probabilities
        if isinstance(outputs, list):
            found: list[Any] = [list(p) for p in zip(*map(probabilities, outputs), strict=True)]
        else:
            found = probabilities(outputs)
        return found[0] if len(found) == 1 else found

    def _has_decisions(self) -> bool:
        """Return true, or raise AttributeError: scikit-learn then sees no `decision_function`."""
        fitted = self.__sklearn_is_fitted__()
        ordered = isinstance(self._kind, Ordinal) if fitted else self.loss == "ordinal"
        if ordered:
            raise AttributeError(
                "with loss='ordinal' predict returns the median, which need not have the largest "
                "score: use predict_proba"
            )
        if fitted and isinstance(self._kind, Classes) and self._form_of_targets.count > 1:
            raise AttributeError("scikit-learn has no scores of several targets: use predict_proba")
        return True

    @available_if(_has_decisions)  # type: ignore[untyped-decorator]
    def decision_function(self, X: object, *, static: object = None) -> Any:  # noqa: N803
        """Return the scores of the classes.

        Not for ``loss="ordinal"``, nor after `fit` with several targets that are no labels.

        Parameters
        ----------
        X, static
            Samples and static features, as in `fit`.

        Returns
        -------
        numpy.ndarray or list
            For two classes ``(N,)``, the second's score less the first's, positive where the second
            is predicted; for more classes ``(N, C)``, in the order of `classes_`; of L labels the
            logits ``(N, L)``. Per step ``(N, T)``, ``(N, T, C)`` or ``(N, T, L)``, or, for a list
            of sequences, a list.

        Raises
        ------
        AttributeError
            These scores do not exist, see above.
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            X or `static` are invalid, or have another form than in `fit`.
        NonFiniteError
            X is a dataset in a file, and holds a missing value.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = np.where(X[:, -1].sum(1) > 0, "up", "down")
        >>> model = SequenceClassifier("gru", epochs=40, random_state=0).fit(X, y)
        >>> np.array_equal(model.decision_function(X) > 0, model.predict(X) == model.classes_[1])
        True
        """
        outputs, decisions = self._outputs(X, static), self._kind.decisions
        return list(map(decisions, outputs)) if isinstance(outputs, list) else decisions(outputs)

    def score(
        self, X: object, y: object, sample_weight: object = None, *, static: object = None  # noqa: N803
    ) -> float:  # fmt: skip
        """Return the fraction of samples, or of steps, with all targets classified correctly.

        Parameters
        ----------
        X, y, sample_weight, static
            Samples, their true labels, weights and static features, as in `fit`. Labels unknown to
            `fit` count as wrong. Weights None: all count alike.

        Returns
        -------
        float
            From 0 to 1, the best.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        ValueError, TypeError
            The data are invalid, or have another form than in `fit`; or all weights are 0.
        NonFiniteError
            X is a dataset in a file, and holds a missing value.

        Examples
        --------
        >>> import numpy as np
        >>> from fastseq.sklearn import SequenceClassifier
        >>> X = np.random.default_rng(0).standard_normal((40, 10, 3))
        >>> y = np.where(X[:, -1].sum(1) > 0, "up", "down")
        >>> model = SequenceClassifier("gru", epochs=40, random_state=0).fit(X, y)
        >>> bool(model.score(X, y) > 0.9)
        True
        """
        truth, predicted, weights = self._compared(X, y, sample_weight, static)
        return float(np.average((truth == predicted).all(1), weights=weights))

    def _read_classes(self, classes: object) -> list[Array] | None:
        if self.loss == "binary_cross_entropy":
            check_label_classes(classes)
            return None
        return read_order(classes) if self.loss == "ordinal" else read_classes(classes)

    def _read_y(self, y: object, inputs: Inputs) -> Targets:
        targets = read_targets(y, inputs, self.per_step, numeric=False)
        if self.loss == "binary_cross_entropy":
            return targets
        if self.loss == "ordinal":
            targets = dataclasses.replace(targets, order=order_of(y))
        return targets.raveled()

    def _problem(
        self, targets: Targets, weights: Items | None, known: list[Array] | None
    ) -> Problem:
        kind: ClassKind
        if self.loss == "binary_cross_entropy":
            kind = Labels.read(targets, self.class_weight)
        elif self.loss == "ordinal":
            kind = Ordinal.read(targets, weights, known)
        else:
            kind = Classes.read(targets, weights, known)
            warn_if_one_hot(targets)
        warn_if_raveled(targets)
        numbers = kind.numbers(targets.rows)
        if self.class_weight is not None and not isinstance(kind, Labels):
            weights = weighted(targets, weights, self.class_weight, kind.known or [])
        strata = None
        if numbers.shape[1] == 1 and not targets.form.per_step:
            strata = numbers[:, 0]
        return Problem(
            targets.like(numbers),
            kind.n_out,
            kind.loss(self.loss),
            (targets.form, kind.form),
            weights,
            strata=strata,
            fitted={"classes_": kind.classes, "_kind": kind},
            head=kind.head,
            scores=kind.scores,
            labels=kind.known[0] if kind.known is not None and len(kind.known) == 1 else None,
        )

    def _fit(self, est: Estimator, task: Task, epochs: int) -> None:
        for callback in est.callbacks:
            if isinstance(callback, ClassificationReport):
                callback.name_classes(task.labels)
        super()._fit(est, task, epochs)
