"""Models and tokenizers of transformers; importing this module imports transformers."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
import warnings
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ._util.seeding import untouched
from ._util.torch_internals import uncompiled
from ._util.tree import tree_leaves
from .errors import MissingFeatureError
from .estimator import Estimator, learner_of
from .nn.pooling import is_within
from .nn.token_ids import no_padding
from .nn.train_eval_mode import in_mode
from .sklearn import SequenceClassifier, SequenceRegressor

try:
    from transformers import (
        AutoConfig,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
except ImportError as error:
    raise MissingFeatureError(
        "fastseq.huggingface needs the package transformers: pip install 'transformers>=5'"
    ) from error

__all__ = ["SeriesModel", "TextBuilder", "TextModel", "Tokenizer", "save_pretrained"]


def __dir__() -> list[str]:
    return __all__


_POSITIONS = ("position_embeddings", "embed_positions", "wpe")
_OF_TOKENIZERS = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model",
    "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip
# What transformers' models for series call the part of their outputs that is predicted.
_PREDICTED = ("prediction_logits", "regression_outputs", "prediction_outputs")


class TextModel(nn.Module):
    """A model of transformers that maps ids to logits, as a model of fastseq.

    It takes ids ``(T, N, 1)`` of N texts of T tokens each, and returns the logits of the texts,
    ``(N, K)``, or of their tokens, ``(T, N, K)``. Tokens past the end of a text are masked: where
    lengths are known, as of lists, these alone decide; else ids that equal the model's
    ``pad_token_id`` are masked at the start and the end of a text, never inside.

    The first shorter text is run alone, too: a model whose logits change with padding is refused.

    Parameters
    ----------
    model
        Such as ``AutoModelForSequenceClassification`` or ``AutoModelForTokenClassification`` make
        it, from a config or from a folder.

    Attributes
    ----------
    num_embeddings
        How many ids the model knows: fastseq refuses others, and does not scale them.
    pad_token_id
        The id that is masked at the ends of texts of unknown lengths, of the model's config, or
        None.

    Raises
    ------
    TypeError
        `model` is no such model, or has no head.
    ValueError
        In a call: texts have more tokens than the model has positions; x is not ``(T, N, 1)``; the
        model needs a ``pad_token_id``, or its logits change with padding.

    Examples
    --------
    >>> from transformers import AutoModelForSequenceClassification, BertConfig
    >>> from fastseq.huggingface import TextModel
    >>> config = BertConfig(
    ...     vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=32, num_labels=3,
    ... )
    >>> model = TextModel(AutoModelForSequenceClassification.from_config(config))
    >>> model(torch.randint(1, 50, (7, 4, 1)), lengths=torch.tensor([7, 3, 5, 7])).shape
    torch.Size([4, 3])
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = _checked(model, "TextModel", ("input_ids", "attention_mask"))
        self._heeds_mask = False  # not known yet

    @property
    def num_embeddings(self) -> int:
        """How many ids the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def pad_token_id(self) -> int | None:
        """The id that is masked at the ends of texts of unknown lengths."""
        found: int | None = self.model.config.pad_token_id
        return found

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Run; see the class. `lengths` are the texts' numbers of tokens, ``(N,)``."""
        if x.dim() != 3 or x.shape[2] != 1 or x.is_floating_point():
            raise ValueError(
                f"x must be integers (T, N, 1), one id for each token, got {tuple(x.shape)} of "
                f"{x.dtype}"
            )
        most = _positions(self.model)
        if most is not None and len(x) > most:
            raise ValueError(
                f"x has texts of {len(x)} tokens, but the model has {most} positions: cut them, "
                f"as by Tokenizer(…, max_length={most})"
            )
        ids, pad = x[..., 0], self.pad_token_id
        if lengths is not None:
            within = is_within(lengths.clamp(min=1), len(x))
            ids = ids.masked_fill(~within, 0 if pad is None else pad)
        elif pad is not None:
            within = no_padding(ids, pad)
        else:
            within = torch.ones_like(ids, dtype=torch.bool)
        if not self._heeds_mask:
            self._check_mask(ids, within)
        return self._logits(ids, within)

    def _logits(self, ids: Tensor, within: Tensor) -> Tensor:
        """Return logits of ids ``(T, N)``, of which some count."""
        try:
            found = self.model(input_ids=ids.T, attention_mask=within.T.long())
        except ValueError as error:
            if self.pad_token_id is None and "padding token" in str(error):
                raise ValueError(
                    f"{type(self.model).__name__} looks for the last token before the padding, but "
                    "its config has no pad_token_id: set config.pad_token_id = …, or pass "
                    "TextBuilder(…, pad_token_id=…), to the id with which the tokenizer pads"
                ) from error
            raise
        logits = getattr(found, "logits", None)
        if not isinstance(logits, Tensor):
            raise TypeError(
                f"TextModel needs a model that returns logits, but {type(self.model).__name__} "
                "does not: take one for classification of sequences or tokens"
            )
        return logits if logits.dim() == 2 else logits.swapaxes(0, 1)

    def _check_mask(self, ids: Tensor, within: Tensor) -> None:
        """Raise if a text has other logits alone than with the padding of its batch.

        The shortest text and the longest one with padding behind it are run.
        """
        if torch.compiler.is_compiling():
            return
        if ids.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        counts, ended = within.sum(0), within[0] & ~within[-1]
        first = int(counts.masked_fill(~ended, len(ids)).argmin())
        if not bool(ended[first]):
            return
        off = torch.autocast(ids.device.type, enabled=False)
        sizes = []
        with in_mode(self.model, training=False), torch.no_grad(), untouched(ids.device), off:
            for n in {first, int(counts.masked_fill(~ended, 0).argmax())}:
                steps = int(counts[n])
                alone = self._logits(ids[:steps, [n]], within[:steps, [n]])
                beside = self._logits(ids[:, [n]], within[:, [n]])
                beside = beside if beside.dim() == 2 else beside[:steps]
                sizes.append(_compared(alone, beside, type(self.model).__name__))
        self._heeds_mask = min(sizes) > 0  # of logits of 0 nothing can be said


@dataclasses.dataclass(frozen=True, init=False)
class TextBuilder:
    """Builder of a `TextModel` that classifies texts, for a wrapper's `module`.

    Parameters
    ----------
    source
        A config of transformers, for random weights; or a folder that ``save_pretrained`` has
        written, or another name that ``from_pretrained`` knows, whose weights training starts from.
        Only safetensors are read.
    overrides
        Values to change in the config, such as ``pad_token_id=0``.

    Raises
    ------
    TypeError
        `source` is neither a config nor a folder; or its config has no such value.
    FileNotFoundError
        When it builds: there is no such folder.
    ValueError
        When it builds: the folder's model has a head for another number of classes.

    Examples
    --------
    >>> import fastseq as fs
    >>> from transformers import DistilBertConfig
    >>> from fastseq.huggingface import TextBuilder
    >>> config = DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    >>> texts = [np.array([1 + n % 2, 5, 6, 7][: 2 + n % 3]) for n in range(40)]
    >>> labels = np.where(np.arange(40) % 2, "odd", "even")
    >>> model = fs.SequenceClassifier(TextBuilder(config), epochs=15, random_state=0)
    >>> model.fit(texts, labels).predict(texts[:3])
    array(['even', 'odd', 'even'], dtype='<U4')
    """

    source: PretrainedConfig | str | os.PathLike[str]
    overrides: dict[str, Any]

    def __init__(self, source: PretrainedConfig | str | os.PathLike[str], **overrides: Any) -> None:
        if not isinstance(source, PretrainedConfig | str | os.PathLike):
            instead = ": pass module=TextModel(model)" if isinstance(source, nn.Module) else ""
            raise TypeError(
                "TextBuilder needs a config of transformers or a folder, got "
                f"{type(source).__name__}{instead}"
            )
        if "num_labels" in overrides:
            raise TypeError("TextBuilder takes no num_labels: it is the number of y's classes")
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "overrides", overrides)

    @property
    def config(self) -> PretrainedConfig:
        """The config, read from the folder if it is one, with the values that were changed."""
        if isinstance(self.source, PretrainedConfig):
            found = copy.deepcopy(self.source)
        else:
            found = AutoConfig.from_pretrained(_existing(self.source))
        for name, value in self.overrides.items():
            if not hasattr(found, name):
                raise TypeError(f"{type(found).__name__} has no {name}, got {name}={value!r}")
            setattr(found, name, value)
        return found

    @property
    def num_embeddings(self) -> int:
        """How many ids the model knows."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def pad_token_id(self) -> int | None:
        """The id that is masked at the ends of texts of unknown lengths."""
        found: int | None = self.config.get_text_config().pad_token_id
        return found

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:  # noqa: ARG002
        """Make the module; transformers draws from PyTorch's global generator."""
        if n_in != 1:
            raise ValueError(f"X must hold one id for each token, got {n_in} features")
        config, kind = self.config, AutoModelForSequenceClassification
        before = config.num_labels
        config.num_labels = n_out
        if isinstance(self.source, PretrainedConfig):
            return TextModel(kind.from_config(config))
        headed = (config.architectures or [""])[0].endswith("ForSequenceClassification")
        if headed and before != n_out:
            raise ValueError(
                f"the model in {os.fspath(self.source)!r} has a head for {before} classes, but y "
                f"needs {n_out}: pass TextModel(AutoModelForSequenceClassification.from_pretrained("
                f"…, num_labels={n_out}, ignore_mismatched_sizes=True)), with a new head"
            )
        return TextModel(kind.from_pretrained(self.source, config=config, use_safetensors=True))


class SeriesModel(nn.Module):
    """A model of transformers that maps ``past_values`` to predictions, as a model of fastseq.

    It takes whole series ``(T, N, F)``, all of the length that the model was made for, and returns
    one prediction for each, ``(N, K)``; forecasts ``(N, H, F)`` of H steps as ``(N, H · F)``.

    Parameters
    ----------
    model
        A PatchTST or PatchTSMixer for regression, classification or prediction, with a loss of
        points, such as ``loss="mse"``, not of a distribution.

    Raises
    ------
    TypeError
        `model` is no such model; in a call: it predicts distributions.
    ValueError
        In a call: series have another length, or other features, than the model was made for.

    Examples
    --------
    >>> from transformers import PatchTSTConfig, PatchTSTForRegression
    >>> from fastseq.huggingface import SeriesModel
    >>> config = PatchTSTConfig(
    ...     num_input_channels=3, context_length=24, patch_length=4, patch_stride=4, d_model=16,
    ...     num_attention_heads=2, num_hidden_layers=1, ffn_dim=32, num_targets=2, loss="mse",
    ... )
    >>> SeriesModel(PatchTSTForRegression(config))(torch.zeros(24, 5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = _checked(model, "SeriesModel", ("past_values",), alone=True)

    def forward(self, x: Tensor) -> Tensor:
        """Run; see the class."""
        config = self.model.config
        for name, found, what in (
            ("context_length", len(x), "steps"),
            ("num_input_channels", x.shape[-1], "features"),
        ):
            wanted = getattr(config, name, found)
            if found != wanted:
                raise ValueError(
                    f"the model is for series of {wanted} {what}, but x has {found}: make it with "
                    f"{name}={found}, or cut and fill up all series to {wanted} {what}"
                )
        found = self.model(past_values=x.swapaxes(0, 1))
        values = next((found[name] for name in _PREDICTED if name in found), None)
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{type(self.model).__name__} must predict points, {' or '.join(_PREDICTED)}: use "
                'a model for regression, classification or prediction, with loss="mse"'
            )
        return values.flatten(1)


class _Ids(list[np.ndarray]):
    """Ids of texts, and the id with which their tokenizer pads, which must be the model's, too."""

    def __init__(self, texts: Iterable[np.ndarray] = (), pad_token_id: int | None = None) -> None:
        super().__init__(texts)
        self.pad_token_id = pad_token_id


class Tokenizer(TransformerMixin, BaseEstimator):
    """Scikit-learn transformer from texts to ids: the first step of a pipeline with a classifier.

    Texts become a list of N arrays ``(T_i,)`` of integers, one for each token, which the wrappers
    take as sequences of different lengths. Nothing is padded.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers; or a folder, or another name that
        ``AutoTokenizer.from_pretrained`` knows.
    max_length
        Texts of more tokens are cut to this many, those for start and end included, so it must be
        more than these. None: they are not cut.

    Attributes
    ----------
    tokenizer_
        The tokenizer of transformers.

    Raises
    ------
    MissingFeatureError
        transformers is not installed (when this module is imported). Parameters are checked in
        `fit`.

    Examples
    --------
    >>> from tokenizers import Tokenizer as Words, models, pre_tokenizers
    >>> from transformers import PreTrainedTokenizerFast
    >>> from fastseq.huggingface import Tokenizer
    >>> words = Words(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "film": 3}, "[UNK]"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
    >>> tokenizer.fit_transform(["good film", "good"])
    [array([2, 3]), array([2])]
    """

    tokenizer_: PreTrainedTokenizerBase

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str],
        *,
        max_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def fit(self, X: Sequence[str], y: object = None) -> Tokenizer:  # noqa: ARG002, N803
        """Load the tokenizer; nothing is learnt from the texts.

        Parameters
        ----------
        X
            Texts, as in `transform`; they are checked.
        y
            Not used.

        Returns
        -------
        Tokenizer
            This transformer.

        Raises
        ------
        TypeError, ValueError
            X are no texts, `tokenizer` is none, or `max_length` is no number that can be cut to.
        FileNotFoundError
            There is no such folder.

        Examples
        --------
        >>> from tokenizers import Tokenizer as Words, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> from fastseq.huggingface import Tokenizer
        >>> words = Words(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, "[UNK]"))
        >>> words = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        >>> Tokenizer(words).fit(["good", "bad"]).tokenizer_.vocab_size
        3
        """
        _texts(X)
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase | str | os.PathLike):
            raise TypeError(
                "tokenizer must be one of transformers, such as PreTrainedTokenizerFast, or a "
                f"folder, got {type(tokenizer).__name__}"
            )
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = AutoTokenizer.from_pretrained(_existing(tokenizer))
        self._check_length(tokenizer)
        self.tokenizer_ = tokenizer
        return self

    def transform(self, X: Sequence[str]) -> list[np.ndarray]:  # noqa: N803
        """Return the texts' ids.

        Parameters
        ----------
        X
            N texts: a list, an array or a Series of strings.

        Returns
        -------
        list of numpy.ndarray
            N arrays ``(T_i,)``, int64.

        Raises
        ------
        NotFittedError
            `fit` has not been called.
        TypeError
            X does not hold strings only.
        ValueError
            X is empty, or a text has no token; or `max_length` is no number that can be cut to.

        Examples
        --------
        >>> from tokenizers import Tokenizer as Words, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> from fastseq.huggingface import Tokenizer
        >>> words = Words(models.WordLevel({"[UNK]": 0, "good": 1, "bad": 2}, "[UNK]"))
        >>> words = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        >>> Tokenizer(words).fit(["good", "bad"]).transform(["bad", "good", "ugly"])
        [array([2]), array([1]), array([0])]
        """
        check_is_fitted(self)
        self._check_length(self.tokenizer_)
        texts = _texts(X)
        cut = self.max_length is not None
        found = self.tokenizer_(
            texts, truncation=cut, max_length=self.max_length, padding=False,
            return_attention_mask=False, verbose=False,
        )["input_ids"]  # fmt: skip
        empty = next((n for n, ids in enumerate(found) if not len(ids)), None)
        if empty is not None:
            raise ValueError(f"X[{empty}] has no tokens, got {texts[empty]!r}: leave it out")
        return _Ids((np.array(ids, np.int64) for ids in found), self.tokenizer_.pad_token_id)

    def set_output(self, *, transform: str | None = None) -> Tokenizer:  # noqa: ARG002
        """Do nothing: ids are a list of arrays, whatever other steps of a pipeline return.

        Parameters
        ----------
        transform
            Not used.

        Returns
        -------
        Tokenizer
            This transformer.
        """
        return self

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:  # noqa: N803
        """Return a short form: a tokenizer's own one lists all its special tokens."""
        given = self.tokenizer
        short = repr(given) if isinstance(given, str | os.PathLike) else type(given).__name__
        cut = "" if self.max_length is None else f", max_length={self.max_length!r}"
        return f"Tokenizer({short}{cut})"

    def _check_length(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise if texts cannot be cut to `max_length`: transformers would not cut them at all."""
        most = self.max_length
        own = tokenizer.num_special_tokens_to_add()
        known = isinstance(most, Integral) and not isinstance(most, bool)
        if most is not None and not (known and most > own):
            raise ValueError(
                f"max_length must be an integer of at least {own + 1}, as the tokenizer adds {own} "
                f"tokens to each text, or None, got {most!r}"
            )


def save_pretrained(
    estimator: Estimator | SequenceClassifier | SequenceRegressor | Pipeline,
    folder: str | os.PathLike[str],
) -> None:
    """Write a trained model for ``from_pretrained`` of transformers. Rank 0 writes.

    The folder gets ``config.json`` and ``model.safetensors``. A classifier's classes are in the
    config, as ``id2label``; of a pipeline with a `Tokenizer`, its files are written, too, with
    `max_length` as ``model_max_length``. Other steps are not.

    Parameters
    ----------
    estimator
        What was trained: its model is a `TextModel` or a `SeriesModel`, without scaling.
    folder
        It is made if it does not exist.

    Raises
    ------
    TypeError
        `estimator` has another model.
    ValueError
        Inputs or targets were scaled, which the folder cannot hold; or tokenizer and model have
        different ids for padding.
    NotFittedError
        It is not fitted.
    NotADirectoryError, FileExistsError
        `folder` is a file; or it has a tokenizer, but `estimator` has none.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import fastseq as fs
    >>> from transformers import AutoModelForSequenceClassification, DistilBertConfig
    >>> from fastseq.huggingface import TextBuilder, save_pretrained
    >>> folder = pathlib.Path(tempfile.mkdtemp(), "model")
    >>> config = DistilBertConfig(vocab_size=50, dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    >>> texts = [np.array([1 + n % 2, 5, 6]) for n in range(40)]
    >>> classifier = fs.SequenceClassifier(TextBuilder(config), epochs=15, random_state=0)
    >>> save_pretrained(classifier.fit(texts, ["no", "yes"] * 20), folder)
    >>> AutoModelForSequenceClassification.from_pretrained(folder).config.id2label
    {0: 'no', 1: 'yes'}
    """
    folder = Path(folder)
    last, before = _unpacked(estimator)
    est = last if isinstance(last, Estimator) else _fitted(last)
    tokenizer = _tokenizer(before)
    model = uncompiled(est.model)
    if not isinstance(model, TextModel | SeriesModel):
        raise TypeError(
            f"save_pretrained needs a trained TextModel or SeriesModel, got {type(model).__name__}"
            f"{_what_is_around(model)}"
        )
    _refuse_scaling(est)
    _check_padding(model, tokenizer)
    replicas = learner_of(est).replicas
    with replicas.together("save_pretrained"):
        replicas.make_common(model)
        replicas.meet()
        if not replicas.first:
            return
        _check_folder(folder, tokenizer)
        _describe(model.model.config, last)
        model.model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _unpacked(estimator: object) -> tuple[object, list[object]]:
    """Return the last step of a pipeline, and those before it, also of pipelines in it."""
    *before, last = _flat(estimator)
    return last, before


def _flat(estimator: object) -> list[object]:
    if not isinstance(estimator, Pipeline):
        return [estimator]
    used = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    return [inner for step in used for inner in _flat(step)]


def _fitted(estimator: object) -> Estimator:
    """Return what a wrapper has trained."""
    if not isinstance(estimator, SequenceClassifier | SequenceRegressor):
        search = ": pass its best_estimator_" if hasattr(estimator, "best_estimator_") else ""
        raise TypeError(
            "save_pretrained needs an Estimator, a SequenceClassifier or SequenceRegressor, or a "
            f"pipeline that ends with one, got {type(estimator).__name__}{search}"
        )
    check_is_fitted(estimator)
    return estimator.estimator_


def _tokenizer(steps: list[object]) -> PreTrainedTokenizerBase | None:
    """Return a copy of a pipeline's tokenizer that knows to how many tokens texts are cut."""
    found = [n for n, step in enumerate(steps) if isinstance(step, Tokenizer)]
    if not found:
        return None
    step = steps[found[-1]]
    assert isinstance(step, Tokenizer)
    check_is_fitted(step)
    if found[-1]:
        names = ", ".join(type(other).__name__ for other in steps[: found[-1]])
        warnings.warn(
            f"the folder does not hold the steps of the pipeline before the Tokenizer, {names}: "
            "apply them yourself where the folder is used",
            stacklevel=3,
        )
    tokenizer = copy.deepcopy(step.tokenizer_)
    if step.max_length is not None:
        tokenizer.model_max_length = int(step.max_length)
    return tokenizer


def _what_is_around(model: nn.Module) -> str:
    """Return what to do if scaling by sequence is why the model is another one."""
    inner = any(isinstance(part, TextModel | SeriesModel) for part in model.modules())
    return ": it is among other layers, such as those of scale_x; pass scale_x=None" * inner


def _refuse_scaling(est: Estimator) -> None:
    """Raise if numbers are scaled before or after the model."""
    scaling = est.scaling_
    if scaling is None:
        return
    affines = filter(None, [*tree_leaves(scaling.x), *tree_leaves(scaling.y)])
    if any((one.center != 0).any() or (one.scale != 1).any() for one in affines):
        raise ValueError(
            "save_pretrained cannot write the scaling of inputs or targets, without which the "
            "model predicts other numbers: train with scale_x=None, scale_y=None, on numbers that "
            "you have scaled yourself"
        )


def _check_padding(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise if transformers would pad with another id than the model looks for."""
    if tokenizer is None or not isinstance(model, TextModel):
        return
    own, others = model.pad_token_id, tokenizer.pad_token_id
    if None not in (own, others) and own != others:
        raise ValueError(
            f"the tokenizer's pad_token_id is {others}, but the config's is {own}, which other "
            f"tools would look for: train with TextBuilder(…, pad_token_id={others})"
        )


def _check_folder(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Raise if a folder is none, or holds what would not fit to the model."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder must be a folder, but {str(folder)!r} is a file")
    old = next((name for name in _OF_TOKENIZERS if (folder / name).exists()), None)
    if tokenizer is None and old is not None:
        raise FileExistsError(
            f"{str(folder)!r} has a tokenizer, {old}, which may be of another model: save a "
            "pipeline with its Tokenizer, or use another folder"
        )


def _describe(config: PretrainedConfig, estimator: object) -> None:
    """Write what a wrapper's outputs mean into the model's config."""
    if isinstance(estimator, SequenceRegressor):
        config.problem_type = "regression"
    if not isinstance(estimator, SequenceClassifier):
        return
    if estimator.loss == "binary_cross_entropy":
        config.problem_type = "multi_label_classification"
    elif not isinstance(estimator.classes_, list):
        config.problem_type = "single_label_classification"
        config.id2label = {n: str(name) for n, name in enumerate(estimator.classes_)}
        config.label2id = {name: n for n, name in config.id2label.items()}


def _compared(alone: Tensor, beside: Tensor, name: str) -> float:
    """Raise if logits differ by more than rounding; return how large they are."""
    size, off_by = float(alone.abs().max()), float((alone - beside).abs().max())
    rounding = 0.003 if alone.dtype in (torch.float32, torch.float64) else 0.25
    if off_by > rounding * size:
        raise ValueError(
            f"{name} returns other logits for a text if padding follows it, by up to {off_by:.2g}, "
            "so predictions would depend on the other texts of a batch: use a model that respects "
            "attention_mask, such as BERT, or texts of one length, or batchsize=1"
        )
    return size


def _checked(
    model: object, user: str, inputs: tuple[str, ...], *, alone: bool = False
) -> PreTrainedModel:
    """Return a model that takes these inputs and has a head; `alone`: it needs no others."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"{user} needs a model of transformers, got {type(model).__name__}")
    takes = inspect.signature(model.forward).parameters
    missing = [name for name in inputs if name not in takes]
    if missing:
        raise TypeError(
            f"{user} needs a model of {' and '.join(inputs)}, but {type(model).__name__} takes no "
            f"{missing[0]}"
        )
    needed = [
        name
        for name, one in takes.items()
        if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if alone and set(needed) - set(inputs):
        raise TypeError(
            f"{user} needs a model of {inputs[0]} alone, such as PatchTST or PatchTSMixer, but "
            f"{type(model).__name__} needs {', '.join(needed)}"
        )
    if model.base_model is model:
        raise TypeError(
            f"{user} needs a model with a head, such as AutoModelForSequenceClassification makes "
            f"it, but {type(model).__name__} has none"
        )
    return model


def _existing(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a folder or a name, checked: what can only be a path must exist."""
    text = os.fspath(name)
    is_path = not isinstance(name, str) or text.startswith((".", "/", "~")) or text.count("/") > 1
    if not text or (is_path and not Path(text).exists()):
        raise FileNotFoundError(f"there is no folder {text!r}")
    return name


def _positions(model: nn.Module) -> int | None:
    """Return how many tokens a model has learnt positions for; None: there is no such limit."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Embedding) and name.rpartition(".")[2] in _POSITIONS:
            before = 0 if layer.padding_idx is None else layer.padding_idx + 1
            return layer.num_embeddings - max(before, getattr(layer, "offset", 0))
    return None


def _texts(X: Any) -> list[str]:  # noqa: N803
    """Return texts as a list, checked."""
    if isinstance(X, str) or getattr(X, "ndim", 1) != 1 or not hasattr(X, "__len__"):
        shape = getattr(X, "shape", None)
        got = type(X).__name__ if shape is None else f"an array of shape {tuple(shape)}"
        raise TypeError(f"X must be texts, a list, an array or a Series of strings, got {got}")
    texts = list(X)
    if not texts:
        raise ValueError("X has no texts: it must hold at least one string")
    other = next((n for n, text in enumerate(texts) if not isinstance(text, str)), None)
    if other is not None:
        raise TypeError(f"X must hold strings, but X[{other}] is {texts[other]!r}")
    return [str(text) for text in texts]
