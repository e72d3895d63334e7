"""Recurrent layers: PyTorch's, on fused operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .. import _ops

__all__ = ["GRU", "LSTM", "RNN", "kernels"]

State = tuple[Tensor, ...]


class _Fused(nn.RNNBase):
    """What the three layers share; comes before one of PyTorch's in the order of their bases."""

    _state_names: tuple[str, ...] = ("h0",)

    def __init__(self, *args: Any, trainable_state: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trainable_state = trainable_state
        if trainable_state:
            if self.proj_size:
                raise ValueError("trainable_state and proj_size cannot be combined")
            like = self._flat_weights[0]
            assert like is not None
            for name in self._state_names:
                shape = (self._rows(), 1, self.hidden_size)
                setattr(self, name, nn.Parameter(like.new_zeros(shape)))

    def reset_parameters(self) -> None:
        """Draw new weights; a trainable state becomes zero."""
        super().reset_parameters()
        for name in self._state_names:
            if name in self._parameters:
                nn.init.zeros_(self._parameters[name])  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Tell the arguments that are not the defaults."""
        return super().extra_repr() + (", trainable_state=True" if self.trainable_state else "")

    def forward(
        self,
        input: Any,  # noqa: A002 (PyTorch's name)
        hx: Any = None,
        lengths: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the layer; see the class."""
        if _why_torch(self, input) is not None:
            return self._by_torch(input, hx, lengths)
        x: Tensor = input
        single = x.dim() == 2  # one sequence, without a dimension for it
        if single:
            x = x.unsqueeze(1)
        elif self.batch_first:
            x = x.transpose(0, 1)
        weights, out_dtype = self._flat_weights, None
        dtype = weights[0].dtype  # type: ignore[union-attr]
        if x.dtype != dtype and torch.is_autocast_enabled("cpu"):
            x, hx = x.to(dtype), _convert(hx, dtype)
        state = self._checked(x, hx, single)
        if lengths is not None:
            lengths = _checked_lengths(lengths, x)
        if dtype.itemsize == 2:  # 16 bits are for storage
            out_dtype = dtype
            x, state = x.float(), tuple(s.float() for s in state)
            weights = [w.float() for w in weights]  # type: ignore[union-attr]
        y, state = self._run(x, weights, state, lengths)
        if out_dtype is not None:
            y, state = y.to(out_dtype), tuple(s.to(out_dtype) for s in state)
        if single:
            y, state = y.squeeze(1), tuple(s.squeeze(1) for s in state)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, state if len(state) == 2 else state[0]

    def _rows(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def _run(
        self, x: Tensor, weights: list[Any], state: State, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """Run all layers and directions on ``(T, N, F)``, from a state of ``(rows, N, H)``."""
        per_row = 4 if self.bias else 2
        rows = self._rows()
        if rows == 1:
            y, *ends = self._row(x, weights, state, lengths, False)
            return y, tuple(ends)
        last: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = nn.functional.dropout(x, self.dropout, self.training)
            outputs = []
            for reverse in (False, True)[: rows // self.num_layers]:
                row = len(last)
                own = weights[row * per_row : (row + 1) * per_row]
                begin = tuple(s[row : row + 1] for s in state)
                y, *ends = self._row(x, own, begin, lengths, reverse)
                outputs.append(y)
                last.append(ends)
            x = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)
        return x, tuple(torch.cat(parts) for parts in zip(*last, strict=True))

    def _row(
        self, x: Tensor, weights: list[Any], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        """Run one layer in one direction."""
        raise NotImplementedError

    def _checked(self, x: Tensor, hx: Any, single: bool) -> State:
        """Return the first state, as a tuple, or raise."""
        if x.dim() != 3:
            raise ValueError(
                f"x must be (time, sequences, features) or (time, features), got {tuple(x.shape)}"
            )
        if x.shape[2] != self.input_size:
            raise ValueError(
                f"x has {x.shape[2]} features, but the layer was made for {self.input_size}"
            )
        like: Any = self._flat_weights[0]
        if x.dtype != like.dtype:
            raise TypeError(
                f"x is {x.dtype}, but the layer's weights are {like.dtype}: convert one of them"
            )
        if like.device != x.device:
            raise ValueError(f"x is on {x.device}, but the layer's weights are on {like.device}")
        shape = (self._rows(), x.shape[1], self.hidden_size)
        if hx is None:
            if self.trainable_state:
                return tuple(getattr(self, name).expand(shape) for name in self._state_names)
            zeros = x.new_zeros(shape)
            return (zeros,) * len(self._state_names)
        state = hx if isinstance(hx, tuple | list) else (hx,)
        if len(state) != len(self._state_names):
            raise TypeError(
                f"hx must be {' and '.join(self._state_names)}, got {len(state)} tensor(s)"
            )
        if single:
            state = tuple(s.unsqueeze(1) if s.dim() == 2 else s for s in state)
        for name, s in zip(self._state_names, state, strict=True):
            if s.shape != shape:
                raise ValueError(
                    f"{name} must be (layers and directions, sequences, hidden size) = {shape}, "
                    f"got {tuple(s.shape)}"
                )
            if s.dtype != x.dtype or s.device != x.device:
                raise TypeError(
                    f"{name} is {s.dtype} on {s.device}, but x is {x.dtype} on {x.device}"
                )
        return tuple(state)

    def _by_torch(self, x: Any, hx: Any, lengths: Tensor | None) -> tuple[Any, Any]:
        """Run PyTorch's own layer, with lengths by way of a packed sequence."""
        if hx is None and self.trainable_state:
            count = x.batch_sizes[0] if isinstance(x, PackedSequence) else 1
            if isinstance(x, Tensor) and x.dim() == 3:
                count = x.shape[0 if self.batch_first else 1]
            begin = tuple(getattr(self, n).expand(-1, int(count), -1) for n in self._state_names)
            if isinstance(x, Tensor) and x.dim() == 2:
                begin = tuple(s.squeeze(1) for s in begin)
            hx = begin if len(begin) == 2 else begin[0]
        if lengths is None:
            return super().forward(x, hx)  # type: ignore[no-any-return]
        if not isinstance(x, Tensor) or x.dim() != 3:
            raise ValueError("lengths need an input of (time, sequences, features)")
        time_major = x.transpose(0, 1) if self.batch_first else x
        lengths = _checked_lengths(lengths, time_major)
        # A packed sequence knows no empty one: those run for a step, which is then undone.
        packed = pack_padded_sequence(
            x, lengths.clamp(min=1).cpu(), self.batch_first, enforce_sorted=False
        )
        y, last = super().forward(packed, hx)
        y, _ = pad_packed_sequence(y, self.batch_first, total_length=time_major.shape[0])
        empty = lengths == 0
        y = y.masked_fill(empty.view((-1, 1, 1) if self.batch_first else (1, -1, 1)), 0)
        pairs = (last, hx) if isinstance(last, tuple) else ((last,), None if hx is None else (hx,))
        ends = tuple(
            torch.where(empty.view(1, -1, 1), torch.zeros_like(s) if pairs[1] is None else b, s)
            for s, b in zip(pairs[0], pairs[1] or pairs[0], strict=True)
        )
        return y, ends if isinstance(last, tuple) else ends[0]


class LSTM(_Fused, nn.LSTM):
    """`torch.nn.LSTM`, all time steps of a layer and direction in one operator.

    The same constructor, parameters, formulas and results as PyTorch's layer (dropout, layers,
    directions, ``batch_first``, packed sequences and single sequences included); ``state_dict``
    goes both ways. It is faster on the CPU, above all for small layers and in training. Where
    there is no kernel (projections, packed sequences, GPUs: there cuDNN is fast), PyTorch's runs;
    ``fastseq.info(est)`` tells which does.

    float32 and float64 are computed as such, 16-bit dtypes in float32. Under autocast the layer
    computes in its weights' dtype.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.nn.LSTM`.
    trainable_state
        Learn the state that a series starts from: parameters ``h0`` and ``c0``,
        ``(layers · directions, 1, hidden)``, used where no state is given. They begin at zero.

    Raises
    ------
    ValueError, TypeError
        In ``forward``, if shapes, dtypes or devices of an argument don't fit the layer.

    Notes
    -----
    ``forward(input, hx=None, lengths=None)``: with `lengths`, ``(sequences,)`` integers from 0 to
    the number of steps, a sequence's state stands still beyond its length, and its output there
    is 0; what the input holds there does not matter.

    Examples
    --------
    >>> layer = LSTM(3, 4)
    >>> _ = layer.load_state_dict(torch.nn.LSTM(3, 4).state_dict())
    >>> y, (h, c) = layer(torch.zeros(5, 2, 3), lengths=torch.tensor([5, 2]))
    >>> y.shape, h.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    _state_names = ("h0", "c0")

    def _row(
        self, x: Tensor, weights: list[Any], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        h0, c0 = state
        return _ops.lstm(x, *_four(weights), h0, c0, lengths, reverse)


class GRU(_Fused, nn.GRU):
    """`torch.nn.GRU`, all time steps of a layer and direction in one operator; see `LSTM`.

    Examples
    --------
    >>> y, h = GRU(3, 4, num_layers=2)(torch.zeros(5, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    def _row(
        self, x: Tensor, weights: list[Any], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        return _ops.gru(x, *_four(weights), state[0], lengths, reverse)


class RNN(_Fused, nn.RNN):
    """`torch.nn.RNN`, all time steps of a layer and direction in one operator; see `LSTM`.

    Examples
    --------
    >>> y, h = RNN(3, 4, nonlinearity="relu")(torch.zeros(5, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    def _row(
        self, x: Tensor, weights: list[Any], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        relu = self.mode == "RNN_RELU"
        return _ops.rnn(x, *_four(weights), state[0], lengths, reverse, relu)


def kernels(model: nn.Module) -> dict[str, str]:
    """Tell what runs each recurrent layer of a model: fastseq's kernels, or PyTorch's and why.

    Examples
    --------
    >>> kernels(nn.ModuleDict({"a": LSTM(3, 4), "b": nn.LSTM(3, 4)}))
    {'a': 'fastseq', 'b': 'torch: the layer is torch.nn.LSTM'}
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            like: Any = module._flat_weights[0]
            if isinstance(module, _Fused):
                reason = _why_torch(module, like)
            else:
                reason = f"the layer is torch.nn.{type(module).__name__}"
            found[name] = "fastseq" if reason is None else f"torch: {reason}"
    return found


def _why_torch(layer: nn.RNNBase, x: Any) -> str | None:
    """Tell why there is no kernel for an input; None if there is."""
    if not isinstance(x, Tensor):
        return "packed sequences"
    if layer.proj_size:
        return "projections"
    if not x.is_cpu:
        return f"the device is {x.device.type}"
    return None


def _four(weights: list[Any]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return one layer's weights and biases; None for biases that it has not."""
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    return w_ih, w_hh, b_ih, b_hh


def _convert(hx: Any, dtype: torch.dtype) -> Any:
    if isinstance(hx, Tensor):
        return hx.to(dtype)
    return None if hx is None else tuple(s.to(dtype) for s in hx)


def _checked_lengths(lengths: Tensor, x: Tensor) -> Tensor:
    steps, count = x.shape[:2]
    if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.is_complex():
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"lengths must be a tensor of integers, got {got}")
    if lengths.shape != (count,):
        raise ValueError(
            f"lengths must be ({count},), one per sequence, got {tuple(lengths.shape)}"
        )
    if lengths.device != x.device:
        raise ValueError(f"lengths must be on {x.device}, like x, got {lengths.device}")
    if not torch.compiler.is_compiling() and count:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must lie between 0 and {steps}, the number of steps, got {low} to {high}"
            )
    return lengths.long()
