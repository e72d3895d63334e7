"""Models and tokenizers of transformers; importing this module imports transformers."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ._util.torch_internals import uncompiled
from .errors import MissingFeatureError
from .estimator import Estimator
from .nn.pooling import is_within
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

_POSITIONS = ("position_embeddings", "embed_positions", "wpe")
# What transformers' models for series call the part of their outputs that is predicted.
_PREDICTED = ("prediction_logits", "regression_outputs", "prediction_outputs")


class TextModel(nn.Module):
    """A model of transformers that maps ids to logits, as a model of fastseq.

    It takes ids ``(T, N, 1)`` of N texts of T tokens each, and returns the logits of the texts,
    ``(N, K)``, or of their tokens, ``(T, N, K)``. Tokens past the end of a text, known from its
    length, and ids that equal the model's ``pad_token_id`` are masked.

    Parameters
    ----------
    model
        Such as ``AutoModelForSequenceClassification`` or ``AutoModelForTokenClassification`` make
        it, from a config or from a folder.

    Attributes
    ----------
    num_embeddings
        How many ids the model knows: fastseq refuses others, and does not scale them.

    Raises
    ------
    TypeError
        `model` is no such model.
    ValueError
        In a call: texts have more tokens than the model has positions, or x is not ``(T, N, 1)``.

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
        self.model: Any = _checked(model, "TextModel")

    @property
    def num_embeddings(self) -> int:
        """How many ids the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

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
        ids, pad = x[..., 0], self.model.config.pad_token_id
        within = torch.ones_like(ids, dtype=torch.bool)
        if lengths is not None:
            within = is_within(lengths.clamp(min=1), len(x))
            ids = ids.masked_fill(~within, 0 if pad is None else pad)
        if pad is not None:
            within = within & (ids != pad)
        found = self.model(input_ids=ids.T, attention_mask=within.T.long())
        logits: Tensor = found.logits
        return logits if logits.dim() == 2 else logits.swapaxes(0, 1)


@dataclasses.dataclass(frozen=True)
class TextBuilder:
    """Builder of a `TextModel` that classifies texts, for a wrapper's `module`.

    Parameters
    ----------
    source
        A config of transformers, for random weights; or a folder that ``save_pretrained`` has
        written, or another name that ``from_pretrained`` knows, whose weights training starts from.
        Only safetensors are read.

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

    @property
    def config(self) -> PretrainedConfig:
        """The config, read from the folder if it is one."""
        if isinstance(self.source, PretrainedConfig):
            return self.source
        return AutoConfig.from_pretrained(self.source)

    @property
    def num_embeddings(self) -> int:
        """How many ids the model knows."""
        return int(self.config.get_text_config().vocab_size)

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:  # noqa: ARG002
        """Make the module; transformers draws from PyTorch's global generator."""
        if n_in != 1:
            raise ValueError(f"X must hold one id for each token, got {n_in} features")
        config = copy.deepcopy(self.config)
        config.num_labels = n_out
        kind = AutoModelForSequenceClassification
        if isinstance(self.source, PretrainedConfig):
            return TextModel(kind.from_config(config))
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
        self.model: Any = _checked(model, "SeriesModel")

    def forward(self, x: Tensor) -> Tensor:
        """Run; see the class."""
        found = self.model(past_values=x.swapaxes(0, 1))
        values = next((found[name] for name in _PREDICTED if name in found), None)
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{type(self.model).__name__} must predict points, {' or '.join(_PREDICTED)}: use "
                'a model for regression, classification or prediction, with loss="mse"'
            )
        return values.flatten(1)


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
        Texts of more tokens are cut to this many, those for start and end included. None: they are
        not cut.

    Attributes
    ----------
    tokenizer_
        The tokenizer of transformers.

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
        """
        _texts(X)
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, PreTrainedTokenizerBase | str | os.PathLike):
            raise TypeError(
                "tokenizer must be one of transformers, such as PreTrainedTokenizerFast, or a "
                f"folder, got {type(tokenizer).__name__}"
            )
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
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
        TypeError
            X does not hold strings only.
        ValueError
            X is empty, or a text has no token.
        """
        check_is_fitted(self)
        texts = _texts(X)
        cut = self.max_length is not None
        found = self.tokenizer_(
            texts, truncation=cut, max_length=self.max_length, padding=False,
            return_attention_mask=False, verbose=False,
        )["input_ids"]  # fmt: skip
        empty = next((n for n, ids in enumerate(found) if not len(ids)), None)
        if empty is not None:
            raise ValueError(f"X[{empty}] has no tokens, got {texts[empty]!r}: leave it out")
        return [np.array(ids, np.int64) for ids in found]


def save_pretrained(
    estimator: Estimator | SequenceClassifier | SequenceRegressor | Pipeline,
    folder: str | os.PathLike[str],
) -> None:
    """Write a trained model for ``from_pretrained`` of transformers. Rank 0 writes.

    The folder gets ``config.json`` and ``model.safetensors``. A classifier's classes are in the
    config, as ``id2label``; of a pipeline that starts with `Tokenizer`, its files are written, too.

    Parameters
    ----------
    estimator
        What was trained: its model is a `TextModel` or a `SeriesModel`.
    folder
        It is made if it does not exist.

    Raises
    ------
    TypeError
        `estimator` has another model.

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
    tokenizer = None
    if isinstance(estimator, Pipeline):
        first, estimator = estimator[0], estimator[-1]
        tokenizer = first.tokenizer_ if isinstance(first, Tokenizer) else None
    est = estimator if isinstance(estimator, Estimator) else _fitted(estimator)
    model = uncompiled(est.model)
    if not isinstance(model, TextModel | SeriesModel):
        raise TypeError(
            f"save_pretrained needs a trained TextModel or SeriesModel, got {type(model).__name__}"
        )
    replicas = est.learner.replicas
    with replicas.together("save_pretrained"):
        replicas.make_common(model)
        if not replicas.first:
            return
        _describe(model.model.config, estimator)
        model.model.save_pretrained(Path(folder))
        if tokenizer is not None:
            tokenizer.save_pretrained(Path(folder))


def _fitted(estimator: object) -> Estimator:
    """Return what a wrapper has trained."""
    if not isinstance(estimator, SequenceClassifier | SequenceRegressor):
        raise TypeError(
            "save_pretrained needs an Estimator, a SequenceClassifier or SequenceRegressor, or a "
            f"pipeline that ends with one, got {type(estimator).__name__}"
        )
    check_is_fitted(estimator)
    return estimator.estimator_


def _describe(config: PretrainedConfig, estimator: object) -> None:
    """Write what a classifier's outputs mean into the model's config."""
    if not isinstance(estimator, SequenceClassifier):
        return
    if estimator.loss == "binary_cross_entropy":
        config.problem_type = "multi_label_classification"
    elif not isinstance(estimator.classes_, list):
        config.problem_type = "single_label_classification"
        config.id2label = {n: str(name) for n, name in enumerate(estimator.classes_)}
        config.label2id = {name: n for n, name in config.id2label.items()}


def _checked(model: object, user: str) -> PreTrainedModel:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"{user} needs a model of transformers, got {type(model).__name__}")
    return model


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
