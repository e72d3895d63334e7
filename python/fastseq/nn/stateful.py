"""Models that carry a state from call to call."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from .._util.seeding import untouched
from .._util.torch_internals import uncompiled
from .._util.tree import Tree, tree_leaves, tree_map
from .column_encoder import ColumnEncoder
from .lengths import mapped, on_host
from .padded_layers import PaddedBatchNorm
from .train_eval_mode import in_mode

__all__ = [
    "Stateful", "batch_dims", "batch_norms", "carries", "each_step", "in_mode", "is_bidirectional",
    "knows_ends", "steps_apart", "takes_lengths", "takes_state",
]  # fmt: skip


def takes_state(module: nn.Module) -> bool:
    """Whether `module` is called as ``(x, state) -> (y, state)`` rather than ``(x) -> y``.

    It is if the second parameter of its ``forward`` is called ``state`` or ``hx``, or is required.

    Raises
    ------
    TypeError
        It is a single-step cell, or needs more than an input and a state.
    ValueError
        It is one of torch's recurrent layers with ``batch_first=True``.

    Examples
    --------
    >>> takes_state(nn.GRU(1, 1)), takes_state(nn.Linear(1, 1))
    (True, False)
    """
    known = _TAKES_STATE.get(type(module))
    if known is not None and not module.__dict__.get("batch_first"):  # in the inner loop
        return known
    module = uncompiled(module)
    if isinstance(module, nn.RNNCellBase):
        raise TypeError(
            f"{type(module).__name__} returns no (output, state); "
            f"use nn.{type(module).__name__.removesuffix('Cell')}, which also runs single steps"
        )
    if isinstance(module, nn.RNNBase) and module.batch_first:
        raise ValueError(
            f"{type(module).__name__} was made with batch_first=True, but data are time-major "
            "(time, sequences, features); make it with batch_first=False"
        )
    return _forward_takes_state(type(module))


_TAKES_STATE: dict[type[nn.Module], bool] = {nn.LSTM: True, nn.GRU: True, nn.RNN: True}


def _forward_takes_state(kind: type[nn.Module]) -> bool:
    known = _TAKES_STATE.get(kind)
    if known is not None:
        return known
    parameters = [
        p
        for p in list(inspect.signature(kind.forward).parameters.values())[1:]
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    required = [p.name for p in parameters if p.default is p.empty]
    if len(required) > 2:
        raise TypeError(
            f"{kind.__name__}.forward needs {', '.join(required)}; "
            "a model is called as forward(x) or forward(x, state)"
        )
    takes = len(required) == 2 or (len(parameters) > 1 and parameters[1].name in ("state", "hx"))
    _TAKES_STATE[kind] = takes
    return takes


def takes_lengths(module: nn.Module) -> bool:
    """Whether the ``forward`` of `module` has a parameter ``lengths``."""
    kind = type(uncompiled(module))
    if kind not in _TAKES_LENGTHS:
        _TAKES_LENGTHS[kind] = "lengths" in inspect.signature(kind.forward).parameters
    return _TAKES_LENGTHS[kind]


_TAKES_LENGTHS: dict[type[nn.Module], bool] = {}


def carries(module: nn.Module) -> bool:
    """Whether `module` has a state to carry; a `Chain` of layers without one has none."""
    plain = uncompiled(module)
    if isinstance(plain, nn.Sequential):
        return takes_state(plain) and any(map(carries, plain))
    return takes_state(plain)


# Their output at a time step depends only on that step.
_STEP_BY_STEP: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Identity, nn.Dropout, nn.AlphaDropout, nn.Embedding, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softsign, nn.Softplus, nn.Tanhshrink, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish,
    nn.Hardtanh, ColumnEncoder,
)  # fmt: skip
_RECURRENT_FILES = ("torch.nn.modules.rnn", "fastseq.nn.recurrent", "fastseq.nn.compiled_layers")


def steps_apart(module: nn.Module) -> bool:
    """Whether the output at a step is known to depend only on that step and the state.

    Known for recurrent layers and for layers that work step by step, alone or in sequence.

    Examples
    --------
    >>> steps_apart(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), steps_apart(nn.Conv1d(3, 4, 5))
    (True, False)
    """
    plain = uncompiled(module)
    kind = type(plain)
    if isinstance(plain, nn.Sequential):
        ours = kind is nn.Sequential or kind.__module__ == "fastseq.nn.chain"
        return ours and all(map(steps_apart, plain))
    if kind.__module__ == "fastseq.sklearn.forecasting.forecast_net":
        return all(map(steps_apart, plain.children()))
    if isinstance(plain, nn.RNNBase):
        return kind.__module__ in _RECURRENT_FILES and not plain.bidirectional
    if isinstance(plain, nn.LayerNorm | nn.RMSNorm):
        return len(plain.normalized_shape) == 1
    return kind in _STEP_BY_STEP


# Pass what they get on to their parts, lengths to those that take them: `Chain`, `Averaged`.
_PASS_ON = (nn.Sequential, nn.ModuleList)


def _told_ends(module: nn.Module) -> bool:
    """Whether steps beyond a sequence's end are known to leave all other outputs unchanged."""
    plain = uncompiled(module)
    if carries(plain):
        return not _reads_padding_backwards(plain)
    if steps_apart(plain):
        return True
    if isinstance(plain, _PASS_ON):
        passed_on = takes_lengths(plain)  # torch's own does not pass lengths on
        return all(_told_ends(m) and (passed_on or not takes_lengths(m)) for m in plain)
    return takes_lengths(plain)


def knows_ends(module: nn.Module) -> bool:
    """Whether all layers get the sequences' lengths, or are known not to look at later steps."""
    plain = uncompiled(module)
    if isinstance(plain, _PASS_ON) and takes_lengths(plain):
        return all(map(knows_ends, plain))
    return takes_lengths(plain) or steps_apart(plain)


def _reads_padding_backwards(module: nn.Module, *, told: bool = True) -> bool:
    """Whether a bidirectional layer is not told where sequences end, such as torch's own."""
    plain = uncompiled(module)
    if isinstance(plain, _PASS_ON):
        told = takes_lengths(plain)
        return any(_reads_padding_backwards(m, told=told) for m in plain)
    return is_bidirectional(plain) and not (told and takes_lengths(plain))


def batch_norms(module: nn.Module, *, of_padding: bool = False) -> list[str]:
    """Return the names of layers in `module` that normalise over sequences.

    `of_padding`: only of those whose statistics count padding, too.
    """
    kinds = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
    found = [(name, m) for name, m in module.named_modules() if isinstance(m, kinds)]
    if of_padding:
        found = [(name, m) for name, m in found if not isinstance(m, PaddedBatchNorm)]
    return [name or type(m).__name__ for name, m in found]


def is_bidirectional(module: nn.Module) -> bool:
    """Whether one of torch's recurrent layers in `module` looks at later steps."""
    return any(isinstance(m, nn.RNNBase) and m.bidirectional for m in module.modules())


class Stateful:
    """A model with its state: the `m` that a loss function gets.

    Calling it on a chunk ``(S, B, F)``, or on one step ``(B, F)``, advances the state. All other
    attributes (``m.parameters()``, …) are the model's.

    Parameters
    ----------
    module
        A model with ``forward(x)`` or ``forward(x, state) -> (y, state)``. Its first state is
        None; a state may be a tensor or nested tuples, lists and dicts of them. If ``forward`` has
        a parameter ``lengths``, it gets each sequence's number of steps, ``(B,)``, for chunks in
        which a sequence ends.

    Attributes
    ----------
    module
        The model.
    state
        The state; None: fresh. `get_state` copies it.
    lengths
        Each sequence's number of steps from here on, ``(B,)``; None: no limit.
    told_ends
        Whether steps beyond a sequence's end are known to leave its other outputs, and its state,
        as they are: the model runs on chunks in which sequences end as a whole.

    Raises
    ------
    TypeError
        `module` is a single-step cell such as `torch.nn.GRUCell`, a `torch.nn.Sequential` around a
        recurrent layer, whose state it would drop, or one whose ``forward`` needs more arguments.
    ValueError
        A recurrent layer was made with ``batch_first=True``. When it is called: the loss runs a
        bidirectional layer of torch's own twice in a chunk in which sequences end.

    Examples
    --------
    >>> m = Stateful(nn.GRU(3, 4))
    >>> m(torch.zeros(10, 2, 3)).shape, m(torch.zeros(2, 3)).shape
    (torch.Size([10, 2, 4]), torch.Size([2, 4]))
    >>> m.get_state().shape
    torch.Size([1, 2, 4])
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state: Tree = None
        self.lengths: Tensor | None = None
        self._ended = False  # in a way that leaves no state to go on from
        plain = uncompiled(module)
        if isinstance(plain, nn.Sequential):
            stateful = [type(uncompiled(a)).__name__ for a in plain if takes_state(a)]
            if stateful and type(plain).forward is nn.Sequential.forward:
                raise TypeError(
                    f"nn.Sequential drops the state of {', '.join(stateful)}; use fastseq.nn.Chain"
                )
        self._takes_state = takes_state(module)
        self.told_ends: bool = _told_ends(module)
        self._backward_starts_fresh = is_bidirectional(module)

    def __call__(self, x: Tree) -> Tree:
        """Run the model from the current state on a chunk or on one step."""
        single = x.dim() == 2 if isinstance(x, Tensor) else _is_step(x)
        if single:
            x = x.unsqueeze(0) if isinstance(x, Tensor) else tree_map(lambda a: a.unsqueeze(0), x)
        if self.lengths is not None:
            y = self._run_to_lengths(x, self.lengths)
        elif self._takes_state:
            y, self.state = self.module(x, self.state)
        else:
            y = self.module(x)
        if single:
            y = y.squeeze(0) if isinstance(y, Tensor) else tree_map(lambda a: a.squeeze(0), y)
        return y

    def _run_to_lengths(self, x: Tree, lengths: Tensor) -> Tree:
        """Run on a chunk in which sequences have different lengths."""
        steps = (x if isinstance(x, Tensor) else tree_leaves(x)[0]).shape[0]
        if not self.told_ends:
            self.lengths = mapped(lengths, lambda n: n - steps)
            return self._run_each_length(x, mapped(lengths, lambda n: n.clamp(0, steps)))
        more = {}
        if takes_lengths(self.module):
            more = {"lengths": mapped(lengths, lambda n: n.clamp(0, steps))}
        self.lengths = mapped(lengths, lambda n: n - steps)
        if not self._takes_state:
            return self.module(x, **more)
        y, self.state = self.module(x, self.state, **more)
        return y

    def _run_each_length(self, x: Tree, lengths: Tensor) -> Tree:
        """Run a model that would see the padding on the sequences of each length separately."""
        if self._takes_state and self._ended:
            raise ValueError(
                "the loss runs the model more than once in a chunk in which sequences end, and the "
                "model has a bidirectional layer that is not told where: use fastseq.nn.LSTM, GRU "
                "or RNN"
            )
        first = x if isinstance(x, Tensor) else tree_leaves(x)[0]
        size, lengths = first.shape[:2], on_host(lengths)
        whole: Tree = None
        for steps in filter(None, torch.unique(lengths).tolist()):
            index = (lengths == steps).nonzero()[:, 0].to(first.device, non_blocking=True)
            part = tree_map(lambda a, n=steps, i=index: a[:n].index_select(1, i), x)
            y = self.module(part, None)[0] if self._takes_state else self.module(part)
            if whole is None:  # outputs of models that pool have no steps
                whole = tree_map(lambda a: _room(a, *size), y)
            tree_map(lambda a, b, n=steps, i=index: _place(a, b, n, i), whole, y)
        self._ended = True
        return whole

    def __getattr__(self, name: str) -> Any:
        # Before Python 3.11, copying looks for a __getstate__, which must not be the model's.
        if name == "module" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.module, name)

    def detach(self) -> None:
        """Detach the state from its graph: gradients do not reach back beyond here."""
        if self.state is not None:
            self.state = tree_map(Tensor.detach, self.state)
            if self._backward_starts_fresh:
                self.state = reset_backward(self.module, self.state)

    def fresh(self) -> Stateful:
        """Return another one of the same model, with a fresh state.

        Returns
        -------
        Stateful
            It shares the model, and has no `lengths`.
        """
        other = copy.copy(self)
        other.state = other.lengths = None
        other._ended = False
        return other

    def reset_state(self) -> None:
        """Forget the state: the next call starts a new series."""
        self.state = None
        self._ended = False

    def get_state(self) -> Tree:
        """Return the state.

        Returns
        -------
        Tensor, tuple, list, dict or None
            A detached copy, in the structure in which the model returns it; None before the first
            call.
        """
        return tree_map(lambda a: a.detach().clone(), self.state)

    def set_state(self, state: Tree) -> None:
        """Continue from `state`, as `get_state` returned it.

        Parameters
        ----------
        state
            The state, of which a detached copy is kept; None: fresh.
        """
        self.state = tree_map(lambda a: a.detach().clone(), state)


def _room(a: Tensor, steps: int, count: int) -> Tensor:
    """Return zeros for all sequences' outputs, given some; pooled outputs have no steps."""
    shape = (count, *a.shape[1:]) if a.dim() == 2 else (steps, count, *a.shape[2:])
    return a.new_zeros(shape)


def _place(into: Tensor, a: Tensor, steps: int, index: Tensor) -> None:
    if a.dim() == 2:
        into[index] = a
    else:
        into[:steps, index] = a


def each_step(outputs: Tree, steps: int) -> Tree:
    """Repeat outputs for whole sequences, ``(B, K)``, at each of their steps."""
    return tree_map(lambda a: a.expand(steps, *a.shape) if a.dim() == 2 else a, outputs)


def _is_step(x: Tree) -> bool:
    """Whether `x` is one time step, ``(B, F)``."""
    return bool(tree_leaves(x)[0].dim() == 2)


def reset_backward(module: nn.Module, state: Tree) -> Tree:
    """Zero the state of the backward direction in bidirectional layers.

    That direction runs from each chunk's end to its start, where its state does not fit the end of
    the next chunk. Layers are found where fastseq threads the state: a bare layer, or in a `Chain`.
    """
    module = uncompiled(module)
    if isinstance(module, nn.RNNBase) and module.bidirectional:
        rows = 2 * module.num_layers

        def keep_forward(a: Tensor) -> Tensor:
            forward = torch.arange(rows, device=a.device) % 2 == 0
            return a * forward.to(a.dtype).view(-1, *(1,) * (a.dim() - 1))

        return tree_map(keep_forward, state)
    if isinstance(module, nn.Sequential) and isinstance(state, tuple):
        pairs = zip(module, state, strict=True)
        return tuple(None if part is None else reset_backward(m, part) for m, part in pairs)
    return state


def batch_dims(module: nn.Module, x: Tree) -> Tree:
    """Return the dimension of the sequences in each state tensor.

    Found by running the model on one and on two sequences: it is the dimension whose length
    differs. -1 if none does (a state that all sequences share).

    Parameters
    ----------
    module
        A model in evaluation mode.
    x
        An input of at least one step and one sequence, ``(S, B, F)``.
    """
    with torch.no_grad(), untouched(tree_leaves(x)[0].device):
        states = []
        for count in (1, 2):
            m = Stateful(module)
            m(tree_map(lambda a, n=count: a[:, :1].expand(-1, n, *a.shape[2:]).contiguous(), x))
            states.append(m.state)

    def differing(one: Tensor, two: Tensor) -> int:
        pairs = zip(one.shape, two.shape, strict=True)
        return next((d for d, (a, b) in enumerate(pairs) if a != b), -1)

    return tree_map(differing, *states)
