"""Describe models of known layers by plain values, never code, and build them again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .._util.torch_internals import children as children_of
from .._util.torch_internals import forward_hooks
from .averaged import Averaged
from .chain import Chain
from .column_encoder import ColumnEncoder
from .images import OnImages
from .instance_scaling import InstanceScale
from .ordinal import OrdinalLogProbabilities
from .padded_layers import PaddedBatchNorm
from .pooling import Pool
from .recurrent import GRU, LSTM, RNN
from .rocket import RandomKernels, Rocket
from .series_networks import LSTMFCN, TCN, InceptionTime, PooledRNN, Transformer

__all__ = ["build", "describe_model"]

_RECURRENT = (
    *("input_size", "hidden_size", "num_layers", "bias"),
    *("batch_first", "dropout", "bidirectional"),
)
_CONVOLUTION = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("bias", "padding_mode"),
)
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")

_NETWORK = ("n_in", "n_out", "width", "pool", "dropout")

# Containers, and their constructors' arguments, which are attributes.
_CONTAINERS: dict[str, tuple[type[nn.Sequential | nn.ModuleList], tuple[str, ...]]] = {
    "fastseq.nn.Averaged": (Averaged, ("classes",)),
    "fastseq.nn.Chain": (Chain, ()),
    "fastseq.nn.OnImages": (OnImages, ("shape",)),
    "torch.nn.Sequential": (nn.Sequential, ()),
}

# Each layer's constructor arguments, all of which are attributes of the layer.
_LAYERS: dict[type[nn.Module], tuple[str, ...]] = {
    LSTM: (*_RECURRENT, "proj_size", "trainable_state"),
    GRU: (*_RECURRENT, "trainable_state"),
    RNN: (*_RECURRENT, "nonlinearity", "trainable_state"),
    LSTMFCN: (*_NETWORK, "kernels", "hidden_size", "stride"),
    InceptionTime: (*_NETWORK, "kernels", "depth"),
    TCN: (*_NETWORK, "kernel_size", "depth"),
    Transformer: (*_NETWORK, "heads", "depth", "causal"),
    PooledRNN: (
        *("n_in", "n_out", "cell", "hidden_size", "num_layers", "bidirectional", "pool", "dropout"),
    ),
    RandomKernels: ("n_in", "steps", "groups", "seed", "parts"),
    Rocket: ("n_in", "n_out", "steps", "groups", "dropout", "seed", "parts"),
    Pool: ("how",),
    ColumnEncoder: ("sizes", "steps", "beside"),
    InstanceScale: ("beside", "features"),
    OrdinalLogProbabilities: ("classes",),
    PaddedBatchNorm: _BATCH_NORM,
    nn.LSTM: (*_RECURRENT, "proj_size"),
    nn.GRU: _RECURRENT,
    nn.RNN: (*_RECURRENT, "nonlinearity"),
    nn.Linear: ("in_features", "out_features", "bias"),
    nn.Embedding: (
        *("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type"),
        *("scale_grad_by_freq", "sparse"),
    ),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.LayerNorm: ("normalized_shape", "eps", "elementwise_affine", "bias"),
    nn.RMSNorm: ("normalized_shape", "eps", "elementwise_affine"),
    nn.GroupNorm: ("num_groups", "num_channels", "eps", "affine"),
    nn.BatchNorm1d: _BATCH_NORM,
    nn.BatchNorm2d: _BATCH_NORM,
    nn.MaxPool2d: (
        *("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode"),
    ),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Dropout: ("p", "inplace"),
    nn.Dropout1d: ("p", "inplace"),
    nn.AlphaDropout: ("p", "inplace"),
    nn.Identity: (),
    nn.Flatten: ("start_dim", "end_dim"),
    nn.ReLU: ("inplace",),
    nn.ReLU6: ("inplace",),
    nn.LeakyReLU: ("negative_slope", "inplace"),
    nn.PReLU: ("num_parameters",),
    nn.ELU: ("alpha", "inplace"),
    nn.CELU: ("alpha", "inplace"),
    nn.SELU: ("inplace",),
    nn.GELU: ("approximate",),
    nn.SiLU: ("inplace",),
    nn.Mish: ("inplace",),
    nn.GLU: ("dim",),
    nn.Tanh: (),
    nn.Sigmoid: (),
    nn.Softsign: (),
    nn.Tanhshrink: (),
    nn.LogSigmoid: (),
    nn.Hardsigmoid: ("inplace",),
    nn.Hardswish: ("inplace",),
    nn.Hardtanh: ("min_val", "max_val", "inplace"),
    nn.Softplus: ("beta", "threshold"),
    nn.Softmax: ("dim",),
    nn.LogSoftmax: ("dim",),
}


def _name(kind: type[nn.Module]) -> str:
    ours = kind.__module__.startswith("fastseq.")
    return f"{'fastseq' if ours else 'torch'}.nn.{kind.__name__}"


_KINDS: dict[str, type[nn.Module]] = {_name(kind): kind for kind in _LAYERS}


def describe_model(model: nn.Module) -> dict[str, Any]:
    """Return a description from which `build` makes a model like this one, without its weights.

    Parameters
    ----------
    model
        A `Chain` or `torch.nn.Sequential` of known layers, or one such layer.

    Returns
    -------
    dict
        Strings, numbers, lists, tuples and dicts.

    Raises
    ------
    ValueError
        It is something else, or would differ when built again; the message says why.

    Examples
    --------
    >>> describe_model(nn.Linear(3, 2))
    {'layer': 'torch.nn.Linear', 'in_features': 3, 'out_features': 2, 'bias': True}
    """
    description = _describe(model, "the model")
    again = build(description)
    if _outline(again) != _outline(model) or repr(again) != repr(model):
        raise ValueError("the model has parameters, buffers or options that its layers lack")
    return description


def _describe(module: nn.Module, where: str) -> dict[str, Any]:
    kind = type(module)
    if "forward" in vars(module) or forward_hooks(module):
        raise ValueError(f"{where} has hooks, or its own forward")
    for name, (container, own) in _CONTAINERS.items():
        if kind is container:
            children = [
                [key, _describe(child, f"layer {key} of {where}")]
                for key, child in children_of(module).items()
                if child is not None
            ]
            return {"layer": name, "layers": children, **{key: getattr(module, key) for key in own}}
    if kind not in _LAYERS:
        raise ValueError(f"{where} is a {kind.__module__}.{kind.__qualname__}")
    arguments = {name: _argument(module, name) for name in _LAYERS[kind]}
    return {"layer": _name(kind), **arguments}


def _argument(layer: nn.Module, name: str) -> Any:
    value = getattr(layer, name)
    if name == "bias" and not isinstance(value, bool):
        return value is not None
    return value


def _outline(model: nn.Module) -> tuple[object, ...]:
    """Return names and shapes of all parameters and buffers, and which of them are shared."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    firsts: dict[int, str] = {}
    same = [firsts.setdefault(id(tensor), name) for name, tensor in named]
    shapes = [(name, tuple(tensor.shape)) for name, tensor in named]
    return same, shapes, list(model.state_dict())


def build(description: Mapping[str, Any]) -> nn.Module:
    """Build the described model without allocating memory: weights are on the meta device.

    Raises
    ------
    ValueError
        It is not a description as `describe_model` returns it.

    Examples
    --------
    >>> build(describe_model(Chain(nn.Linear(3, 2), nn.Tanh())))
    Chain(
      (0): Linear(in_features=3, out_features=2, bias=True)
      (1): Tanh()
    )
    """
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warned when the model was made
            return _build(description)
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"this does not describe a model: {description!r:.300}") from error


def _build(description: Mapping[str, Any]) -> nn.Module:
    arguments = dict(description)
    name = arguments.pop("layer")
    if name in _CONTAINERS:
        kind, own = _CONTAINERS[name]
        layers = arguments.pop("layers")
        if set(arguments) != set(own):
            raise ValueError(f"{name} is built from layers, {', '.join(own)}, not {arguments!r}")
        container = kind(**{key: arguments[key] for key in own})
        for key, child in layers:
            container.add_module(key, _build(child))
        return container
    if name not in _KINDS:
        raise ValueError(f"{name!r} is not a layer that this version of fastseq can build")
    layer = _KINDS[name]
    if set(arguments) != set(_LAYERS[layer]):
        raise ValueError(f"{name} is built from {', '.join(_LAYERS[layer])}, not {arguments!r}")
    return layer(**arguments)
