"""Recurrent layers, all time steps of one layer and direction in one call.

The formulas are those of `torch.nn.LSTM`, `GRU` and `RNN`. An ordinary step goes through
`torch.autograd.Function`, the quickest way to register a gradient from Python (28 µs for forward
and backward of a tiny layer, where ``register_autograd`` takes 40); tracing compilers see operators
with registered formulas. Second derivatives and transforms of torch.func are left to `formulas`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from ..._util.torch_internals import below_autograd, functorch_is_active
from .formulas import GRU, LSTM, RELU, TANH, Layer, differentiable_gradients, run_steps
from .library import AutogradContext, native

__all__ = ["gru", "lstm", "rnn"]

_NAMES = ("w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0")


def lstm(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one direction of one layer of an LSTM over all steps.

    Parameters
    ----------
    x
        Inputs ``(T, N, F)``, any strides. float32 or float64; on a GPU, where a layer has up to 128
        hidden units, also float16 or bfloat16, whose sums are float32.
    w_ih, w_hh, b_ih, b_hh
        Weights ``(4H, F)``, ``(4H, H)`` and biases ``(4H,)``, gates in the order i, f, g, o.
    h0, c0
        The initial state, ``(1, N, H)``.
    lengths
        Steps of each sequence, ``(N,)``, int64: beyond them the state stays constant, y is 0, and
        x is not read. On a GPU, a length that is out of range makes the state NaN.
    reverse
        Run from the last step to the first.

    Returns
    -------
    tuple
        Outputs ``(T, N, H)`` and the last state, ``(1, N, H)`` each.

    Raises
    ------
    RuntimeError
        Shapes, dtypes or devices don't fit together.

    Notes
    -----
    For backward, 5 numbers per step, sequence and hidden unit are kept besides x and y (4 by `gru`,
    none by `rnn`), on the CPU with hidden units rounded up to a multiple of 64 bytes.

    Examples
    --------
    >>> x, state = torch.ones(5, 2, 3), torch.zeros(1, 2, 4)
    >>> y, h, c = lstm(x, torch.ones(16, 3), torch.ones(16, 4), None, None, state, state)
    >>> y.shape, h.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    result: tuple[Tensor, Tensor, Tensor]
    if torch.compiler.is_compiling():
        save = torch.is_grad_enabled()
        result = native.lstm(x, w_ih, w_hh, b_ih, b_hh, h0, c0, lengths, reverse, save)[:3]
    elif functorch_is_active():
        layer = Layer(LSTM, x, w_ih, w_hh, b_ih, b_hh, h0, c0, lengths, reverse)
        y, h, c = run_steps(layer)
        result = y, h, c
    elif torch.is_grad_enabled():
        result = _apply_lstm(x, w_ih, w_hh, b_ih, b_hh, h0, c0, lengths, reverse)
    else:
        with below_autograd():
            call = native.lstm.default
            result = call(x, w_ih, w_hh, b_ih, b_hh, h0, c0, lengths, reverse, False)[:3]
    return result


def gru(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run one direction of one layer of a GRU over all steps; see `lstm`. Gates: r, z, n."""
    result: tuple[Tensor, Tensor]
    if torch.compiler.is_compiling():
        save = torch.is_grad_enabled()
        result = native.gru(x, w_ih, w_hh, b_ih, b_hh, h0, lengths, reverse, save)[:2]
    elif functorch_is_active():
        layer = Layer(GRU, x, w_ih, w_hh, b_ih, b_hh, h0, None, lengths, reverse)
        y, h = run_steps(layer)
        result = y, h
    elif torch.is_grad_enabled():
        result = _apply_gru(x, w_ih, w_hh, b_ih, b_hh, h0, lengths, reverse)
    else:
        with below_autograd():
            call = native.gru.default
            result = call(x, w_ih, w_hh, b_ih, b_hh, h0, lengths, reverse, False)[:2]
    return result


def rnn(
    x: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    h0: Tensor,
    lengths: Tensor | None = None,
    reverse: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run one direction of one layer of an RNN, tanh or relu, over all steps; see `lstm`."""
    result: tuple[Tensor, Tensor]
    if torch.compiler.is_compiling():
        result = native.rnn(x, w_ih, w_hh, b_ih, b_hh, h0, lengths, reverse, relu)
    elif functorch_is_active():
        cell = RELU if relu else TANH
        layer = Layer(cell, x, w_ih, w_hh, b_ih, b_hh, h0, None, lengths, reverse)
        y, h = run_steps(layer)
        result = y, h
    elif torch.is_grad_enabled():
        result = _apply_rnn(x, w_ih, w_hh, b_ih, b_hh, h0, lengths, reverse, relu)
    else:
        with below_autograd():
            call = native.rnn.default
            result = call(x, w_ih, w_hh, b_ih, b_hh, h0, lengths, reverse, relu)
    return result


class _Context(AutogradContext, Protocol):
    reverse: bool
    relu: bool  # of `rnn` alone


class _Lstm(Function):
    @staticmethod
    def forward(ctx: _Context, *args: Any) -> tuple[Tensor, ...]:
        with below_autograd():
            y, h, c, saved = native.lstm.default(*args, any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        ctx.reverse = args[8]
        ctx.save_for_backward(*args[:8], y, saved)
        return y, h, c

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, y, saved = ctx.saved_tensors
        layer = (LSTM, *inputs, ctx.reverse)
        return *_gradients(layer, grads, y, saved, ctx.needs_input_grad[:7]), None, None


class _Gru(Function):
    @staticmethod
    def forward(ctx: _Context, *args: Any) -> tuple[Tensor, ...]:
        with below_autograd():
            y, h, saved = native.gru.default(*args, any(ctx.needs_input_grad))
        ctx.set_materialize_grads(False)
        ctx.reverse = args[7]
        ctx.save_for_backward(*args[:7], y, saved)
        return y, h

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, lengths, y, saved = ctx.saved_tensors
        layer = (GRU, *inputs, None, lengths, ctx.reverse)
        needs = (*ctx.needs_input_grad[:6], False)
        return *_gradients(layer, (*grads, None), y, saved, needs)[:6], None, None


class _Rnn(Function):
    @staticmethod
    def forward(ctx: _Context, *args: Any) -> tuple[Tensor, ...]:
        with below_autograd():
            y, h = native.rnn.default(*args)
        ctx.set_materialize_grads(False)
        ctx.reverse, ctx.relu = args[7:]
        ctx.save_for_backward(*args[:7], y)
        return y, h

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *inputs, lengths, y = ctx.saved_tensors
        layer = (RELU if ctx.relu else TANH, *inputs, None, lengths, ctx.reverse)
        needs = (*ctx.needs_input_grad[:6], False)
        return *_gradients(layer, (*grads, None), y, None, needs)[:6], None, None, None


# The function behind `apply`, which first looks for transforms of torch.func: that is done already
# here, and would take half as long as a tiny layer.
_apply_lstm: Callable[..., tuple[Tensor, Tensor, Tensor]] = super(Function, _Lstm).apply
_apply_gru: Callable[..., tuple[Tensor, Tensor]] = super(Function, _Gru).apply
_apply_rnn: Callable[..., tuple[Tensor, Tensor]] = super(Function, _Rnn).apply


def _gradients(
    layer: tuple[Any, ...],
    grads: tuple[Tensor | None, ...],
    y: Tensor,
    saved: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, w_ih, w_hh, b_ih, b_hh, h0 and c0 where they are needed."""
    if torch.is_grad_enabled():
        return differentiable_gradients(Layer._make(layer), grads, needs)
    cell, x, w_ih, w_hh, b_ih, _, h0, c0, lengths, reverse = layer
    bias = b_ih is not None
    need_weights = needs[1] or needs[2] or needs[3] or needs[4]
    need_state = needs[5] or needs[6]
    with below_autograd():
        dx, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0 = native.recurrence_backward.default(
            cell, *grads, x, w_ih, w_hh, bias, h0, c0, lengths, reverse, y, saved,
            needs[0], need_weights, need_state,
        )  # fmt: skip
    return (
        dx if needs[0] else None,
        dw_ih if need_weights else None,
        dw_hh if need_weights else None,
        db_ih if need_weights and bias else None,
        db_hh if need_weights and bias else None,
        dh0 if need_state else None,
        dc0 if need_state and cell == LSTM else None,
    )


def _fake(x: Tensor, tensors: list[Any], lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return y and h; `tensors` are weights, biases and state."""
    for name, tensor in zip(_NAMES, tensors, strict=False):
        if tensor is not None and (tensor.device, tensor.dtype) != (x.device, x.dtype):
            raise RuntimeError(f"{name} must have the dtype and the device of x")
    if lengths is not None and lengths.device != x.device:
        raise RuntimeError("lengths must have the device of x")
    _, w_hh, _, _, h0, *_ = tensors
    return x.new_empty(x.shape[0], x.shape[1], w_hh.shape[1]), h0.new_empty(h0.shape)


def _fake_saved(x: Tensor, w_hh: Tensor, quantities: int, save: bool) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    lanes = 1 if x.is_cuda else 64 // dtype.itemsize
    units = (w_hh.shape[1] + lanes - 1) // lanes * lanes
    numel = x.shape[0] * x.shape[1] * units * quantities
    return x.new_empty(numel if save else 0, dtype=dtype)


def _fake_lstm(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, lengths, _reverse, save = rest
    y, h = _fake(x, tensors, lengths)
    return y, h, torch.empty_like(h), _fake_saved(x, rest[1], 5, save)


def _fake_gru(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *tensors, lengths, _reverse, save = rest
    return *_fake(x, tensors, lengths), _fake_saved(x, rest[1], 4, save)


def _fake_rnn(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *tensors, lengths, _reverse, _relu = rest
    return _fake(x, tensors, lengths)


def _fake_backward(
    cell: int, _dy: object, _dh: object, _dc: object, x: Tensor, w_ih: Tensor, w_hh: Tensor,
    bias: bool, h0: Tensor, _c0: object, _lengths: object, _reverse: bool, _y: object,
    _saved: object, need_x: bool, need_weights: bool, need_state: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    wanted = (
        (need_x, x.shape),
        (need_weights, w_ih.shape),
        (need_weights, w_hh.shape),
        (need_weights and bias, w_ih.shape[:1]),
        (need_weights and bias, w_ih.shape[:1]),
        (need_state, h0.shape),
        (need_state and cell == LSTM, h0.shape),
    )
    return tuple(x.new_empty(shape if want else (0,)) for want, shape in wanted)


def _save_lstm(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.reverse = inputs[8]
    ctx.save_for_backward(*inputs[:8], output[0], output[3])


def _save_gru(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.reverse = inputs[7]
    ctx.save_for_backward(*inputs[:7], output[0], output[2])


def _save_rnn(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.reverse, ctx.relu = inputs[7:]
    ctx.save_for_backward(*inputs[:7], output[0])


def _grad_lstm(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_Lstm.backward(ctx, *grads[:3]), None)


def _grad_gru(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return (*_Gru.backward(ctx, *grads[:2]), None)


torch.library.register_fake("fastseq::lstm", _fake_lstm)
torch.library.register_fake("fastseq::gru", _fake_gru)
torch.library.register_fake("fastseq::rnn", _fake_rnn)
torch.library.register_fake("fastseq::recurrence_backward", _fake_backward)
torch.library.register_autograd("fastseq::lstm", _grad_lstm, setup_context=_save_lstm)
torch.library.register_autograd("fastseq::gru", _grad_gru, setup_context=_save_gru)
torch.library.register_autograd("fastseq::rnn", _Rnn.backward, setup_context=_save_rnn)
