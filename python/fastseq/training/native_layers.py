"""What the C++ step can train: models, losses and optimizers in its terms.

Classes of rooms that come later have a method ``native_terms``, which returns what an object is in
terms of this module, or raises `NotNative`.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn, optim

from .. import _step
from .._util.torch_internals import (
    has_hooks,
    own_parameters,
    rnn_weight_names,
    rnn_weights,
)
from ..nn import GRU, LSTM, RNN, Chain, Pool, PooledRNN
from ..nn.compiled_layers import SUBSTITUTES
from ..nn.losses import by_seqloss
from ..nn.per_sequence import AtLastStep, PerSequence
from ..nn.series_networks import Head
from ..nn.stateful import takes_lengths, takes_state
from .known_optimizers import obstacle

__all__ = [
    "End", "Loss", "LossKind", "NativeModel", "NativeStep", "NativeStepPredictor",
    "NativeUpdate", "NotNative", "Outcome", "SegmentLayers", "SideBySide", "check_single",
    "dropout_of", "has_bf16", "is_unchanged", "layers_of", "loss_of", "loss_of_known", "members_of",
    "native_types", "optimizer_of", "pools", "rows_of", "settings_of", "states_of",
    "step_predictor_type", "with_rows",
]  # fmt: skip

End = _step.End
LossKind = _step.LossKind
Loss = _step.Loss
Outcome = _step.Outcome
NativeModel = _step.Model32 | _step.Model64
NativeUpdate = _step.Update32 | _step.Update64
NativeStep = _step.Step32 | _step.Step64
NativeStepPredictor = _step.StepPredictor32 | _step.StepPredictor64
has_bf16 = _step.has_bf16
is_unchanged = _step.is_unchanged

# Addresses of a parameter and of its gradient.
Weights = tuple[int, int]
HeadLayer = _step.LinearLayer | _step.ActivationLayer | _step.DropoutLayer
SingleLayer = HeadLayer | _step.RecurrentLayer | _step.SegmentRnnLayer | _step.PooledLayer
Layer = SingleLayer | _step.MembersLayer


class NotNative(Exception):  # noqa: N818
    """Why the C++ step cannot do something."""


def native_types(dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Return the classes of models, updates and steps for parameters of a dtype."""
    if dtype == torch.float64:
        return _step.Model64, _step.Update64, _step.Step64
    return _step.Model32, _step.Update32, _step.Step32


def step_predictor_type(dtype: torch.dtype) -> Any:
    """Return the class that runs single steps of models with parameters of a dtype."""
    return _step.StepPredictor64 if dtype == torch.float64 else _step.StepPredictor32


_ACTIVATIONS = {
    nn.ReLU: _step.Activation.relu,
    nn.Sigmoid: _step.Activation.sigmoid,
    nn.Tanh: _step.Activation.tanh,
}
_POOLINGS = {"last": _step.Pooling.last, "mean": _step.Pooling.mean, "max": _step.Pooling.max}
# Another thread may be compiling the model.
_RECURRENT: tuple[type[nn.Module], ...] = (
    nn.LSTM, nn.GRU, nn.RNN, LSTM, GRU, RNN, *SUBSTITUTES.values()
)  # fmt: skip
_CELLS = {
    "LSTM": _step.Cell.lstm,
    "GRU": _step.Cell.gru,
    "RNN_TANH": _step.Cell.rnn_tanh,
    "RNN_RELU": _step.Cell.rnn_relu,
}


# What C++ computes instead; a class's `forward` may be replaced in place.
_KNOWN: tuple[type[nn.Module], ...] = (
    *_ACTIVATIONS, *_RECURRENT, nn.Linear, nn.Dropout, nn.Identity, nn.Sequential, Chain,
    Pool, PooledRNN, Head,
    nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss,
)  # fmt: skip
_FORWARDS = {kind: kind.forward for kind in _KNOWN}
_IN_CHAINS = (nn.RNNBase, Pool, PooledRNN)  # have a state, or take lengths


@dataclasses.dataclass(frozen=True)
class SegmentLayers:
    """The sizes and layers of a `SegmentRNN` without covariates."""

    horizon: int
    variables: int
    outputs: int
    lags: int
    segment: int
    linear: nn.Module
    embed: nn.Module
    recurrent: nn.Module
    mix: nn.Module
    dropout: nn.Module
    out: nn.Module


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """Members of an ensemble, whose outputs come side by side."""

    members: list[nn.Module]


def _terms(thing: object) -> Any:
    """Return what an object says it is, None if it does not; subclasses may be something else."""
    tell = vars(type(thing)).get("native_terms")
    return None if tell is None else tell(thing)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the module that a wrapper says it is, or the model."""
    own = _terms(model)
    return own if isinstance(own, nn.Module) else model


def members_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of an ensemble without their wrappers, or a model alone without its own.

    Examples
    --------
    >>> members_of(nn.Linear(1, 2))
    [Linear(in_features=1, out_features=2, bias=True)]
    """
    outer = _unwrapped(model)
    own = _terms(outer)
    return [_unwrapped(m) for m in own.members] if isinstance(own, SideBySide) else [outer]


def check_single(model: nn.Module) -> None:
    """Raise `NotNative` for what C++ does not run but in training."""
    if len(members_of(model)) > 1:  # C++ has them side by side, not their mean
        raise NotNative("members of an ensemble")
    if pools(model):
        raise NotNative("one output for each sequence")
    if any(dropout_of(module) > 0 for module in model.modules()):
        raise NotNative("dropout in evaluation")
    if next(model.parameters(), None) is None:  # inputs then have torch's default dtype
        raise NotNative("the model has no parameters")


def pools(model: nn.Module) -> bool:
    """Whether a model has one output for each sequence.

    Examples
    --------
    >>> pools(Chain(LSTM(2, 3), Pool("last"))), pools(Chain(LSTM(2, 3)))
    (True, False)
    """
    return any(type(module) is Pool for module in model.modules())


def modules_of(model: nn.Module) -> Iterator[tuple[nn.Module, bool]]:
    """Yield a model's layers in order, and whether they carry a state if they have one.

    Raises
    ------
    NotNative
        It is another model.
    """
    if isinstance(model, nn.Sequential) and type(model) in (nn.Sequential, Chain):
        for part in model:  # `children` leaves out what is there again
            yield from modules_of(part)
    elif isinstance(model, PooledRNN) and type(model) is PooledRNN:
        head = model.head
        if type(head) is not Head:
            raise NotNative(f"a PooledRNN with a {type(head).__name__}")
        behind = (head.pool, head.dropout, head.linear)
        yield model.rnn, False
        yield from ((part, False) for part in behind if part is not None)
    else:
        yield model, True


def layers_of(
    model: nn.Module, features: int | None, weights: Callable[[Tensor | None], Weights]
) -> tuple[list[Layer], int]:
    """Return a model's layers for the C++ step, and its number of outputs.

    Parameters
    ----------
    model
        A layer, or layers in a `Chain` or `torch.nn.Sequential`.
    features
        The number of inputs; None: that of the first layer that tells it.
    weights
        Returns addresses of a parameter and its gradient; 0 for None.

    Raises
    ------
    NotNative
        It has something else.
    """
    _check_modules(model)
    used = 0

    def counted(p: Tensor | None) -> Weights:
        nonlocal used
        used += p is not None
        return weights(p)

    numbers = itertools.count()
    stacks = [_stack(member, features, numbers, counted) for member in members_of(model)]
    if used < len(list(model.parameters())):
        raise NotNative("the model has parameters that are not its layers'")
    layers, outputs = stacks[0]
    if len(stacks) == 1:
        return [*layers], outputs
    if any(width != outputs for _, width in stacks) or not all(own for own, _ in stacks):
        raise NotNative("its layers do not fit")
    return [_step.MembersLayer([own for own, _ in stacks])], outputs * len(stacks)


def _stack(
    model: nn.Module,
    features: int | None,
    numbers: Iterator[int],
    weights: Callable[[Tensor | None], Weights],
) -> tuple[list[SingleLayer], int]:
    """Return layers one after another, and their number of outputs; `numbers`: of all layers."""
    found: list[SingleLayer] = []  # up to a `Pool`
    head: list[HeadLayer] = []
    pool: tuple[list[_step.Pooling], int] | None = None
    for module, carries in modules_of(model):
        kind, own = type(module).__name__, _terms(module)
        layer: SingleLayer | None
        if isinstance(module, Pool) and type(module) is Pool:
            if pool is not None:
                raise NotNative("a Pool behind a Pool")
            if not _POOLINGS.keys() >= set(module.parts):
                raise NotNative(f"a Pool of {module.parts}")
            pool = [_POOLINGS[part] for part in module.parts], features or 0
            features = None if features is None else features * len(module.parts)
            continue
        if not isinstance(own, SegmentLayers):
            layer, features = _layer(module, features, next(numbers), weights, carries=carries)
        elif found or pool is not None:
            raise NotNative(f"a {kind} behind other layers")
        else:
            layer, features = _segment_rnn(own, features, next(numbers), weights)
        if layer is None:
            continue
        if pool is None:
            found.append(layer)
        elif isinstance(layer, HeadLayer):
            head.append(layer)
        else:
            raise NotNative(f"a {kind} behind a Pool")
    if not features:
        raise NotNative("no layer tells how many inputs there are")
    return found if pool is None else [*found, _step.PooledLayer(*pool, head)], features


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if has_hooks(module):
            raise NotNative(f"{name or 'the model'} has hooks")
        if not _has_known_forward(module):
            raise NotNative(f"{name or 'the model'} has its own forward")
    outer = members_of(model)
    for module in model.modules():
        if type(module) is Chain and not any(module is own for own in outer):
            raise NotNative("a Chain inside another module")
        if type(module) is nn.Sequential and any(isinstance(m, _IN_CHAINS) for m in module):
            raise NotNative("a Sequential, which passes no state and no lengths")
    params = list(model.named_parameters(remove_duplicate=False))
    if len({id(p) for _, p in params}) < len(params):
        raise NotNative("layers share parameters")
    for name, p in params:
        if type(p) is not nn.Parameter or has_hooks(p):
            raise NotNative(f"{name} is no plain parameter")
        if p.dtype not in (torch.float32, torch.float64) or not p.is_cpu:
            raise NotNative(f"{name} is {p.dtype} on {p.device.type}".replace("torch.", ""))
        if p.dtype != params[0][1].dtype:
            raise NotNative("parameters of several dtypes")
        if not p.is_contiguous():
            raise NotNative(f"{name} is not contiguous")
        if p.is_neg():
            raise NotNative(f"{name} is negated only when it is read")


def _has_known_forward(module: nn.Module) -> bool:
    """Whether nobody has replaced what a module of a known class computes."""
    known = _FORWARDS.get(type(module))
    return "forward" not in vars(module) and known in (None, type(module).forward)


def _check_shape(p: Tensor | None, *shape: int) -> None:
    if p is not None and p.shape != shape:
        raise NotNative(f"a parameter of shape {tuple(p.shape)}, where its layer says {shape}")


def _layer(
    module: nn.Module,
    features: int | None,
    number: int,
    weights: Callable[[Tensor | None], Weights],
    *,
    carries: bool = False,
) -> tuple[SingleLayer | None, int | None]:
    kind = type(module)
    if kind is nn.Identity:
        return None, features
    if kind in _ACTIVATIONS:
        return _step.ActivationLayer(_ACTIVATIONS[kind], features or 0), features
    if isinstance(module, nn.Dropout) and kind is nn.Dropout:
        return _step.DropoutLayer(dropout_of(module), features or 0, number), features
    if isinstance(module, nn.Linear) and kind is nn.Linear:
        _check_width(module.in_features, features)
        own = own_parameters(module)
        if module.weight is not own.get("weight") or module.bias is not own.get("bias"):
            raise NotNative("a layer uses other weights than its parameters")
        _check_shape(module.weight, module.out_features, module.in_features)
        _check_shape(module.bias, module.out_features)
        of = weights(module.weight), weights(module.bias)
        return _step.LinearLayer(module.in_features, module.out_features, *of), module.out_features
    if isinstance(module, nn.RNNBase) and kind in _RECURRENT:
        _check_width(module.input_size, features)
        outputs = module.hidden_size * (2 if module.bidirectional else 1)
        return _recurrent(module, number, weights, carries=carries), outputs
    raise NotNative(f"the model has a {kind.__name__}")


def dropout_of(module: nn.Module) -> float:
    """Return the fraction of its outputs that a layer drops in its present mode."""
    if not module.training or not isinstance(module, nn.Dropout | nn.RNNBase):
        return 0.0
    return float(module.dropout if isinstance(module, nn.RNNBase) else module.p)


def _check_width(wanted: int, features: int | None) -> None:
    if not wanted or features not in (None, wanted):
        raise NotNative("its layers do not fit")


def _recurrent(
    module: nn.RNNBase,
    number: int,
    weights: Callable[[Tensor | None], Weights],
    *,
    carries: bool,
) -> SingleLayer:
    if module.proj_size:
        raise NotNative("projections")
    if module.batch_first:
        raise NotNative("a layer with batch_first=True")
    if getattr(module, "trainable_state", False):
        raise NotNative("a trainable initial state")
    names = rnn_weight_names(module)
    own = [own_parameters(module).get(name) for name in names]
    used = [id(p) for p in rnn_weights(module)]
    rows = module.num_layers * (2 if module.bidirectional else 1)
    whole = len(names) == rows * (4 if module.bias else 2)
    if not whole or id(None) in used or [id(p) for p in own] != used:
        raise NotNative("a layer uses other weights than its parameters")
    gates = module.hidden_size * {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    above = module.hidden_size * (2 if module.bidirectional else 1)
    for name, p in zip(names, own, strict=True):
        inputs = module.input_size if "_l0" in name else above
        width = module.hidden_size if "_hh_" in name else inputs
        _check_shape(p, gates, *(() if name.startswith("bias") else (width,)))
    return _step.RecurrentLayer(
        cell=_CELLS[module.mode],
        inputs=module.input_size,
        hidden=module.hidden_size,
        layers=module.num_layers,
        biases=module.bias,
        bidirectional=module.bidirectional,
        dropout=dropout_of(module),
        takes_lengths=takes_lengths(module),
        carries=carries,
        number=number,
        weights=[weights(p) for p in own],
    )


def _segment_rnn(
    own: SegmentLayers,
    features: int | None,
    number: int,
    weights: Callable[[Tensor | None], Weights],
) -> tuple[SingleLayer, int]:
    each = own.variables if features is None else features // own.lags
    if each < own.variables or features not in (None, each * own.lags):
        raise NotNative("its layers do not fit")

    def layer(name: str, kinds: tuple[type[nn.Module], ...], inputs: int, outputs: int) -> Any:
        module = getattr(own, name)
        if type(module) not in kinds:
            raise NotNative(f"a SegmentRNN whose {name} is a {type(module).__name__}")
        found, width = _layer(module, inputs, number, weights)
        _check_width(outputs, width)
        return found

    linear = (nn.Linear,)
    seen, forecast = (own.segment + 1) * own.variables, own.horizon * own.outputs
    hidden = int(getattr(own.recurrent, "hidden_size", 0))
    made = _step.SegmentRnnLayer(
        horizon=own.horizon, variables=own.variables, outputs=own.outputs, lags=own.lags,
        features=each, segment=own.segment,
        linear=layer("linear", linear, own.lags, forecast),
        embed=layer("embed", linear, seen, hidden),
        recurrent=layer("recurrent", (nn.GRU, GRU), hidden, hidden),
        mix=layer("mix", linear, hidden, hidden),
        dropout=layer("dropout", (nn.Dropout,), hidden, hidden),
        out=layer("out", linear, hidden, forecast * own.variables),
    )  # fmt: skip
    return made, forecast * own.variables


def states_of(model: nn.Module, sequences: int, like: Tensor) -> tuple[Any, list[Tensor]]:
    """Return a model's state at a series' start, zeros, and its tensors in the layers' order."""
    tensors: list[Tensor] = []

    def state(module: nn.Module) -> Any:
        if type(module) is Chain:
            return tuple(state(part) for part in module)
        if not isinstance(module, nn.RNNBase):
            return None
        rows = module.num_layers * (2 if module.bidirectional else 1)
        count = 2 if module.mode == "LSTM" else 1
        own = [like.new_zeros(rows, sequences, module.hidden_size) for _ in range(count)]
        tensors.extend(own)
        return tuple(own) if count == 2 else own[0]

    found = tuple(state(member) for member in members_of(model))
    if len(found) == 1:
        return found[0], tensors
    return found if takes_state(_unwrapped(model)) else None, tensors


def with_rows(a: Tensor) -> Tensor:
    """Return a tensor ``(S, B, F)`` whose features are contiguous."""
    return a if a.stride(2) == 1 or a.shape[2] == 1 else a.contiguous()


def rows_of(a: Tensor) -> tuple[int, int, int]:
    """Return the address of the features of step 0 and sequence 0, and strides to the next ones."""
    return a.data_ptr(), a.stride(0), a.stride(1)


# With their parameters.
_LOSSES: dict[Any, tuple[_step.LossKind, list[float]]] = {
    F.mse_loss: (_step.LossKind.mse, []),
    F.l1_loss: (_step.LossKind.mae, []),
    F.huber_loss: (_step.LossKind.huber, [1.0]),
    F.smooth_l1_loss: (_step.LossKind.smooth_l1, [1.0]),
    F.binary_cross_entropy_with_logits: (_step.LossKind.binary_with_logits, []),
    F.cross_entropy: (_step.LossKind.cross_entropy, []),
}


def loss_of_known(fn: Any, part_weights: list[float]) -> Loss:
    """Return the mean of an elementwise loss over known targets, whose equal parts have weights.

    Raises
    ------
    NotNative
        It is another one.
    """
    for known, own in _LOSSES.items():
        if fn is known and fn is not F.cross_entropy:
            return Loss(*own, of_known=True, part_weights=part_weights)
    raise NotNative(f"the loss is {getattr(fn, '__name__', fn)}")


def loss_of(loss: Any) -> tuple[Loss, bool]:
    """Return a loss over chunks, and whether it is of last steps alone.

    Raises
    ------
    NotNative
        It is another loss.
    """
    if type(loss) in (PerSequence, AtLastStep):  # all layers have outputs at each step
        inner, last_only = loss_of(loss.loss)
        return inner, last_only or type(loss) is AtLastStep
    if isinstance(own := _terms(loss), Loss):
        return own, False
    made = by_seqloss(loss) and isinstance(loss, functools.partial)
    if not made or len(loss.args) != 3 or loss.keywords:
        raise NotNative("the loss is not made by seqloss")
    fn = loss.args[0]
    if isinstance(fn, functools.partial):
        if not fn.args and fn.keywords == {"reduction": "none"} and fn.func in _LOSSES:
            return Loss(*_LOSSES[fn.func]), False
        raise NotNative(f"the loss is {getattr(fn.func, '__name__', fn.func)}")
    return _module_loss(fn), False


def _module_loss(fn: Any) -> Loss:
    kind, kinds = type(fn), _step.LossKind
    if has_hooks(fn):
        raise NotNative("the loss has hooks")
    if not _has_known_forward(fn):
        raise NotNative("the loss has its own forward")
    if kind is nn.MSELoss:
        return Loss(kinds.mse)
    if kind is nn.L1Loss:
        return Loss(kinds.mae)
    if kind is nn.HuberLoss and fn.delta > 0:
        return Loss(kinds.huber, [float(fn.delta)])
    if kind is nn.SmoothL1Loss and fn.beta >= 0:
        return Loss(kinds.smooth_l1, [float(fn.beta)]) if fn.beta else Loss(kinds.mae)
    if kind is nn.BCEWithLogitsLoss and fn.weight is None and fn.pos_weight is None:
        return Loss(kinds.binary_with_logits)
    # Labels to ignore have been given weight 0.
    if kind is nn.CrossEntropyLoss and fn.weight is None and not fn.label_smoothing:
        return Loss(kinds.cross_entropy)
    raise NotNative(f"the loss is {fn}")


_OPTIMIZERS: dict[type[optim.Optimizer], tuple[_step.OptimizerKind, tuple[str, str, str]]] = {
    optim.SGD: (_step.OptimizerKind.sgd, ("momentum_buffer", "", "")),
    optim.Adam: (_step.OptimizerKind.adam, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    optim.AdamW: (_step.OptimizerKind.adam, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    optim.RMSprop: (_step.OptimizerKind.rmsprop, ("grad_avg", "square_avg", "momentum_buffer")),
}


def optimizer_of(optimizer: optim.Optimizer) -> tuple[_step.OptimizerKind, tuple[str, str, str]]:
    """Return the kind of an optimizer, and the names of its state's tensors.

    Raises
    ------
    NotNative
        It is another one, or has something unusual.
    """
    if type(optimizer) not in _OPTIMIZERS:
        raise NotNative(f"the optimizer is {type(optimizer).__name__}")
    if (reason := obstacle(optimizer)) is not None:
        raise NotNative(reason)
    for group in optimizer.param_groups:
        if group.get("differentiable"):
            raise NotNative("the optimizer is differentiable")
        if group.get("capturable"):
            raise NotNative("the optimizer is capturable")
    return _OPTIMIZERS[type(optimizer)]


def settings_of(optimizer: optim.Optimizer) -> list[_step.Settings]:
    """Return the present numbers of an optimizer's groups."""
    return [_settings(type(optimizer), group) for group in optimizer.param_groups]


def _settings(kind: type[optim.Optimizer], group: dict[str, Any]) -> _step.Settings:
    common: dict[str, Any] = {
        "lr": float(group["lr"]), "weight_decay": float(group["weight_decay"]),
        "maximize": group["maximize"],
    }  # fmt: skip
    if kind is optim.SGD:
        return _step.Settings(
            **common, momentum=float(group["momentum"]), dampening=float(group["dampening"]),
            nesterov=group["nesterov"],
        )  # fmt: skip
    if kind is optim.RMSprop:
        return _step.Settings(
            **common, momentum=float(group["momentum"]), beta1=float(group["alpha"]),
            eps=float(group["eps"]), centered=group["centered"],
        )  # fmt: skip
    beta1, beta2 = group["betas"]
    return _step.Settings(
        **common, beta1=float(beta1), beta2=float(beta2), eps=float(group["eps"]),
        amsgrad=group["amsgrad"], decoupled=bool(group["decoupled_weight_decay"]),
    )  # fmt: skip
