"""PyTorch's recurrent layers on fused operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .._util.torch_internals import own_parameters, rnn_weight_names
from . import ops as _ops
from .lengths import on_host
from .recurrent_arguments import autocasts, check_input, checked_lengths, checked_state, to_dtype
from .stateful import takes_lengths

__all__ = ["GRU", "LSTM", "RNN", "keeps_lengths_on_device", "kernels"]

State = tuple[Tensor, ...]

# The kernels first reorder a copy of the weights. PyTorch's GRU and RNN do not: they are quicker
# for up to _FEW steps times sequences, if the hidden state has at least _LARGE units.
_FEW, _LARGE = 16, 256
# Of hidden units in the kernels for GPUs.
_MOST_ON_GPU = 128


class _Fused(nn.RNNBase):
    """Common base of the three layers; comes before PyTorch's layer in their list of bases."""

    _state_names: tuple[str, ...] = ("h0",)

    def __init__(self, *args: Any, trainable_state: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trainable_state = trainable_state
        if trainable_state:
            if self.proj_size:
                raise ValueError("trainable_state and proj_size cannot be combined")
            like = self.get_parameter("weight_ih_l0")
            for name in self._state_names:
                shape = (self._rows(), 1, self.hidden_size)
                setattr(self, name, nn.Parameter(like.new_zeros(shape)))

    def reset_parameters(self) -> None:
        """Draw new weights; a trainable state becomes zero."""
        super().reset_parameters()
        for name in self._state_names:
            if (start := own_parameters(self).get(name)) is not None:
                nn.init.zeros_(start)

    def extra_repr(self) -> str:
        """Return the arguments that differ from their defaults."""
        return super().extra_repr() + (", trainable_state=True" if self.trainable_state else "")

    def forward(
        self,
        input: object,  # noqa: A002 (PyTorch's name)
        hx: object = None,
        lengths: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the layer; see the class."""
        if not isinstance(input, Tensor):
            return self._packed(input, hx, lengths)
        x = input
        single = x.dim() == 2  # one sequence, without its dimension
        if single:
            x = x.unsqueeze(1)
        elif self.batch_first and x.dim() == 3:
            x = x.transpose(0, 1)
        by_torch = _why_torch(self, x, lengths is not None) is not None
        weights = self._weights()
        like = weights[0]
        if not by_torch and torch.is_autocast_enabled(x.device.type):
            x, hx = to_dtype(x, like.dtype), to_dtype(hx, like.dtype)
        converts = by_torch and autocasts(x)  # PyTorch's layers do
        check_input(x, self.input_size, like, any_dtype=converts)
        state = self._first_state(x, hx, single, converts)
        if lengths is not None:
            lengths = checked_lengths(lengths, x, may_wait=by_torch)
        if by_torch:
            y, state = self._by_torch(x, state, lengths)
        else:
            y, state = self._by_kernels(x, weights, state, lengths)
        if single:
            y, state = y.squeeze(1), tuple(s.squeeze(1) for s in state)
        elif self.batch_first:
            y = y.transpose(0, 1)
        return y, state if len(state) == 2 else state[0]

    def _weights(self) -> list[Tensor]:
        # By name: functional_call replaces parameters.
        own: dict[str, Any] = own_parameters(self)
        return [own[n] if n in own else getattr(self, n) for n in rnn_weight_names(self)]

    def _by_kernels(
        self, x: Tensor, weights: list[Tensor], state: State, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """Run fastseq's kernels on ``(T, N, F)``."""
        dtype = x.dtype
        if dtype.itemsize > 2 or x.is_cuda:
            return self._run(x, weights, state, lengths)
        wide = [w.float() for w in weights]  # 16 bits are for storage; a GPU's kernels convert
        y, state = self._run(x.float(), wide, tuple(s.float() for s in state), lengths)
        return y.to(dtype), tuple(s.to(dtype) for s in state)

    def _rows(self) -> int:
        return self.num_layers * (2 if self.bidirectional else 1)

    def _run(
        self, x: Tensor, weights: list[Tensor], state: State, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """Run all layers and directions on ``(T, N, F)``, from a state ``(rows, N, H)``."""
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
        self, x: Tensor, weights: list[Tensor], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        """Run one layer in one direction."""
        raise NotImplementedError

    def _first_state(self, x: Tensor, hx: object, single: bool, any_dtype: bool) -> State:
        """Check and return the given state, or the layer's initial state."""
        shape = (self._rows(), x.shape[1], self.hidden_size)
        names = self._state_names
        if hx is None and self.trainable_state:
            return tuple(getattr(self, name).expand(shape) for name in names)
        if hx is None and not self.proj_size:
            return (x.new_zeros(shape),) * len(names)
        shapes = [shape] * len(names)
        if self.proj_size:
            shapes[0] = (*shape[:2], self.proj_size)
        if hx is None:
            return tuple(x.new_zeros(s) for s in shapes)
        return checked_state(hx, names, shapes, x, single=single, any_dtype=any_dtype)

    def _by_torch(self, x: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """Run PyTorch's own layer on ``(T, N, F)``, packing the sequence if there are lengths."""
        given = x.transpose(0, 1) if self.batch_first else x
        state = tuple(s.contiguous() for s in state)  # cuDNN takes no views that repeat a row
        hx = state if len(state) == 2 else state[0]
        if lengths is None:
            y, last = super().forward(given, hx)
            return y.transpose(0, 1) if self.batch_first else y, _tuple(last)
        # Packed sequences cannot be empty: empty ones run for a step, which is then undone.
        empty = (lengths == 0).view(1, -1, 1)
        packed = pack_padded_sequence(
            x.masked_fill(empty, 0), on_host(lengths).clamp(min=1), enforce_sorted=False
        )
        y, last = super().forward(packed, hx)
        y, _ = pad_packed_sequence(y, total_length=x.shape[0])
        ends = zip(state, _tuple(last), strict=True)
        return y.masked_fill(empty, 0), tuple(torch.where(empty, b, s) for b, s in ends)

    def _packed(self, x: object, hx: object, lengths: object) -> tuple[PackedSequence, Any]:
        """Run PyTorch's own layer on a packed sequence."""
        if not isinstance(x, PackedSequence):
            raise TypeError(f"input must be a tensor or a PackedSequence, got {type(x).__name__}")
        if lengths is not None:
            raise ValueError("lengths cannot be given with a PackedSequence, which has its own")
        if hx is None and self.trainable_state:
            count = int(x.batch_sizes[0])
            begin = tuple(getattr(self, n).repeat(1, count, 1) for n in self._state_names)
            hx = begin if len(begin) == 2 else begin[0]
        y, last = super().forward(x, hx)
        return y, last


class LSTM(_Fused, nn.LSTM):
    """`torch.nn.LSTM`, all time steps of a layer and direction in one operator.

    The same constructor, parameters, formulas and results as PyTorch's layer (dropout, layers,
    directions, ``batch_first``, packed sequences and single sequences included);
    ``state_dict``s are interchangeable. It is faster on the CPU, above all for small layers and in
    training. On a GPU, where cuDNN is fast, kernels run only layers of up to 128 hidden units with
    lengths or in float64 (not yet run on a GPU). Where no kernel does (projections, packed
    sequences, all else on a GPU), PyTorch's layer runs; ``fastseq.info(est)`` shows which one does.

    Maps ``(T, N, F)``, T steps of N sequences, to a pair of outputs ``(T, N, D · H)`` and the state
    ``(h, c)`` after the last step, ``(layers · D, N, H)`` each; H is the hidden size, and D, the
    number of directions, 1 or 2.

    float32 and float64 are computed as such, 16-bit dtypes in float32. Under autocast the kernels
    compute in the weights' dtype.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.nn.LSTM`.
    trainable_state
        Learn the initial state of a series: parameters ``h0`` and ``c0``,
        ``(layers · directions, 1, hidden)``, used if no state is given. They start at zero.

    Raises
    ------
    ValueError, TypeError
        `torch.nn.LSTM` does not take the arguments; or `trainable_state` comes with ``proj_size``.
        In a call: shapes, dtypes or devices of an argument don't fit the layer.

    Notes
    -----
    ``forward(input, hx=None, lengths=None)``: `hx` is the state ``(h0, c0)`` before the first step,
    None: the layer's own, see `trainable_state`, else zeros. With `lengths`, ``(sequences,)``
    integers from 0 to the number of steps, a sequence's state stays constant beyond its length, and
    its output there is 0, regardless of the input; None: all sequences have all steps. Where
    kernels run on a GPU, lengths stay there, and one that is out of range makes its sequence's
    state NaN.

    An estimator with ``compile=True`` compiles the layer. Your own `torch.compile` breaks its graph
    at every recurrent layer, as PyTorch's compiler does, unless ``torch._dynamo.config.allow_rnn``
    is True. `torch.jit` does not support it; use ``est.export``.

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
        self, x: Tensor, weights: list[Tensor], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        h0, c0 = state
        return _ops.lstm(x, *_four(weights), h0, c0, lengths, reverse)


class GRU(_Fused, nn.GRU):
    """`torch.nn.GRU`, all time steps of a layer and direction in one operator; see `LSTM`.

    Maps ``(T, N, F)`` to a pair of outputs ``(T, N, D · H)`` and the state after the last step,
    ``(layers · D, N, H)``, with D directions and the hidden size H.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.nn.GRU`.
    trainable_state
        Learn the initial state of a series: a parameter ``h0``, ``(layers · directions, 1,
        hidden)``, used if no state is given. It starts at zero.

    Raises
    ------
    ValueError, TypeError
        `torch.nn.GRU` does not take the arguments. In a call: shapes, dtypes or devices of an
        argument don't fit the layer.

    Examples
    --------
    >>> y, h = GRU(3, 4, num_layers=2)(torch.zeros(5, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    def _row(
        self, x: Tensor, weights: list[Tensor], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        return _ops.gru(x, *_four(weights), state[0], lengths, reverse)


class RNN(_Fused, nn.RNN):
    """`torch.nn.RNN`, all time steps of a layer and direction in one operator; see `LSTM`.

    Maps ``(T, N, F)`` to a pair of outputs ``(T, N, D · H)`` and the state after the last step,
    ``(layers · D, N, H)``, with D directions and the hidden size H.

    Parameters
    ----------
    *args, **kwargs
        As for `torch.nn.RNN`, such as ``nonlinearity="relu"``; the default is "tanh".
    trainable_state
        Learn the initial state of a series: a parameter ``h0``, ``(layers · directions, 1,
        hidden)``, used if no state is given. It starts at zero.

    Raises
    ------
    ValueError, TypeError
        `torch.nn.RNN` does not take the arguments. In a call: shapes, dtypes or devices of an
        argument don't fit the layer.

    Examples
    --------
    >>> y, h = RNN(3, 4, nonlinearity="relu")(torch.zeros(5, 2, 3))
    >>> y.shape, h.shape
    (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """

    def _row(
        self, x: Tensor, weights: list[Tensor], state: State, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, ...]:
        relu = self.mode == "RNN_RELU"
        return _ops.rnn(x, *_four(weights), state[0], lengths, reverse, relu)


def kernels(model: nn.Module) -> dict[str, str]:
    """Describe what runs each recurrent layer of a model: fastseq's kernels, or PyTorch's and why.

    Examples
    --------
    >>> kernels(nn.ModuleDict({"a": LSTM(3, 4), "b": nn.LSTM(3, 4)}))
    {'a': 'fastseq', 'b': 'torch: the layer is torch.nn.LSTM'}
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            like = module.weight_ih_l0
            if isinstance(module, _Fused):
                reason = _why_torch(module, like)
            else:
                reason = f"the layer is torch.nn.{type(module).__name__}"
            found[name] = "fastseq" if reason is None else f"torch: {reason}"
    return found


def keeps_lengths_on_device(model: nn.Module) -> bool:
    """Whether it is known that a model on a GPU does not read lengths of sequences on the host.

    Known if all modules that take lengths are fastseq's, and kernels run the recurrent ones.

    Examples
    --------
    >>> keeps_lengths_on_device(nn.LSTM(3, 4)), keeps_lengths_on_device(LSTM(3, 4, proj_size=2))
    (True, False)
    """
    return all(
        type(module).__module__.startswith("fastseq.nn.")
        and not (isinstance(module, _Fused) and _why_torch(module, module.weight_ih_l0, True))
        for module in model.modules()
        if takes_lengths(module)
    )


def _why_torch(layer: nn.RNNBase, x: object, has_lengths: bool = False) -> str | None:
    """Return why PyTorch's layer runs an input, or None if a kernel does."""
    if not isinstance(x, Tensor):
        return "packed sequences"
    if layer.proj_size:
        return "projections"
    if x.is_cuda:
        return _why_torch_on_gpu(x.device.index, layer.hidden_size, x.dtype, has_lengths)
    if not x.is_cpu:
        return f"the device is {x.device.type}"
    if layer.hidden_size >= _LARGE and layer.mode != "LSTM" and not torch.compiler.is_compiling():
        return "too few steps to sort the weights for" if x.shape[:2].numel() <= _FEW else None
    return None


def _why_torch_on_gpu(index: int, hidden: int, dtype: torch.dtype, has_lengths: bool) -> str | None:
    """Return the same for a GPU: kernels run what cuDNN runs slowly, or not at all."""
    if obstacle := _ops.gpu_obstacle(index):
        return f"no kernels for this GPU: {obstacle}"
    if hidden > _MOST_ON_GPU:
        return f"more than {_MOST_ON_GPU} hidden units on a GPU"
    if has_lengths or dtype == torch.float64:
        return None
    return "cuDNN is for what has no lengths"


def _four(weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return one layer's weights and biases; None for missing biases."""
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    return w_ih, w_hh, b_ih, b_hh


def _tuple(state: Tensor | State) -> State:
    return state if isinstance(state, tuple) else (state,)
