"""Builders of modules whose sizes depend on the data: `Linear`, `MLP`, `Recurrent` and others.

A builder is a callable that gets the numbers of inputs and outputs and a seeded generator, and
returns a module; the scikit-learn estimators take any builder as their ``module``.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from torch import nn

from .._util.spelling import meant
from . import GRU, LSTM, RNN, Chain
from .images import ImageBuilder

__all__ = ["MLP", "Builder", "ImageBuilder", "Linear", "Recurrent", "Short"]


def __dir__() -> list[str]:
    return __all__


class Builder(Protocol):
    """Makes a module for data with `n_in` features and `n_out` outputs.

    ``rng`` is a seeded `torch.Generator`; torch's global one is seeded for the call, too. If there
    is one target per sequence, modules of builders with a true attribute ``whole`` get whole
    sequences, ``n_in`` = steps · features; others get them step by step.

    A true attribute ``images`` means that data are images ``(N, W, H, C)`` or ``(N, W, H)``:
    ``n_in`` is then ``(W, H, C)``, and the module gets them as PyTorch's convolutions do,
    ``(N, C, W, H)``, and returns ``(N, n_out)``; see `ImageBuilder`.

    Examples
    --------
    A function is a builder, too:

    >>> def build(n_in, n_out, rng):
    ...     return Chain(GRU(n_in, 8, trainable_state=True), nn.Linear(8, n_out))
    >>> build(3, 2, torch.Generator())(torch.zeros(50, 5, 3))[0].shape
    torch.Size([50, 5, 2])

    It takes the place of the name of a model:

    >>> from fastseq.sklearn import SequenceRegressor
    >>> X = np.random.default_rng(0).standard_normal((20, 10, 3))
    >>> SequenceRegressor(build, epochs=1).fit(X, X[:, -1, 0]).predict(X).shape
    (20,)
    """

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:
        """Make the module.

        Parameters
        ----------
        n_in
            Number of features of the module's input, of images ``(W, H, C)``.
        n_out
            Number of outputs.
        rng
            A seeded generator, for what is drawn at random.

        Returns
        -------
        torch.nn.Module
            Time-major: ``(T, N, n_in)`` to ``(T, N, n_out)``; with one target per sequence also to
            ``(N, n_out)``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Linear:
    """Builder of a linear layer and an activation: ``(…, n_in)`` to ``(…, n_out)``.

    Parameters
    ----------
    activation
        A module class, called without arguments, for the outputs.

    Raises
    ------
    TypeError
        When it builds: `activation` cannot be called.

    Examples
    --------
    >>> Linear()(3, 2, torch.Generator())
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): Identity()
    )
    """

    activation: type[nn.Module] = nn.Identity
    whole = True

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:  # noqa: ARG002
        """Make the module."""
        return nn.Sequential(nn.Linear(n_in, n_out), self.activation())


@dataclasses.dataclass(frozen=True)
class Short:
    """Builder of a network with one hidden layer, and dropout after it.

    The module maps ``(…, n_in)`` to ``(…, n_out)``.

    Parameters
    ----------
    n_hidden
        Width of the hidden layer; None: the geometric mean of the numbers of inputs and outputs.
    dropout
        The fraction of the hidden layer's outputs that training drops.
    activation
        A module class, called without arguments, for the hidden layer.

    Raises
    ------
    ValueError
        When it builds: `dropout` is not from 0 to 1.
    TypeError
        When it builds: `activation` cannot be called.

    Examples
    --------
    >>> Short(dropout=0.0)(8, 2, torch.Generator())[0]
    Linear(in_features=8, out_features=4, bias=True)
    """

    n_hidden: int | None = None
    dropout: float = 0.5
    activation: type[nn.Module] = nn.Sigmoid
    whole = True

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:  # noqa: ARG002
        """Make the module."""
        width = max(1, round(math.sqrt(n_in * n_out))) if self.n_hidden is None else self.n_hidden
        return nn.Sequential(
            nn.Linear(n_in, width),
            self.activation(),
            nn.Dropout(self.dropout),
            nn.Linear(width, n_out),
        )


@dataclasses.dataclass(frozen=True)
class MLP:
    """Builder of a multi-layer perceptron: ``(…, n_in)`` to ``(…, n_out)``.

    Parameters
    ----------
    hidden
        Widths of the hidden layers, from the input on; (): it is a linear layer.
    dropout
        The fraction of each hidden layer's outputs that training drops.
    activation
        A module class, called without arguments, for the hidden layers.

    Raises
    ------
    ValueError
        When it builds: `dropout` is not from 0 to 1.
    TypeError
        When it builds: `hidden` is no sequence, or `activation` cannot be called.

    Examples
    --------
    >>> len(MLP(hidden=(16, 8))(3, 2, torch.Generator()))
    5
    """

    hidden: tuple[int, ...] = (100,)
    dropout: float = 0.0
    activation: type[nn.Module] = nn.ReLU
    whole = True

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:  # noqa: ARG002
        """Make the module."""
        layers: list[nn.Module] = []
        for width in self.hidden:
            layers += [nn.Linear(n_in, width), self.activation()]
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            n_in = width
        return nn.Sequential(*layers, nn.Linear(n_in, n_out))


_CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


@dataclasses.dataclass(frozen=True)
class Recurrent:
    """Builder of recurrent layers with a linear layer on top, a `fastseq.nn.Chain`.

    The module maps ``(T, N, n_in)`` to a pair of ``(T, N, n_out)`` and the state.

    Parameters
    ----------
    cell
        ``"lstm"``, ``"gru"`` or ``"rnn"``.
    hidden_size
        Width of the layers.
    num_layers
        The number of recurrent layers.
    dropout
        The fraction of each layer's outputs that training drops.

    Raises
    ------
    ValueError
        `cell` is unknown; or when it builds: `hidden_size` or `num_layers` is below 1, or `dropout`
        is not from 0 to 1.

    Examples
    --------
    >>> Recurrent("gru", hidden_size=8)(3, 2, torch.Generator())
    Chain(
      (0): GRU(3, 8)
      (1): Linear(in_features=8, out_features=2, bias=True)
    )
    """

    cell: str = "lstm"
    hidden_size: int = 32
    num_layers: int = 1
    dropout: float = 0.0
    whole = False

    def __post_init__(self) -> None:
        if self.cell not in _CELLS:
            names = ", ".join(map(repr, _CELLS))
            hint = meant(self.cell, _CELLS)
            raise ValueError(f"cell must be one of {names}, got {self.cell!r}{hint}")

    def __call__(self, n_in: int, n_out: int, rng: torch.Generator) -> nn.Module:  # noqa: ARG002
        """Make the module."""
        between = self.dropout if self.num_layers > 1 else 0.0
        layers: list[nn.Module] = [
            _CELLS[self.cell](n_in, self.hidden_size, self.num_layers, dropout=between)
        ]
        if self.dropout:
            layers.append(nn.Dropout(self.dropout))
        return Chain(*layers, nn.Linear(self.hidden_size, n_out))
