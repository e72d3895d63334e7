"""`Learner`: a model with all that is needed to train, run and save it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn, optim

from .._util.tree import Tree, tree_map
from ..data.fingerprint import checksums
from ..data.inputs import step_input
from ..data.integer_inputs import check_step
from ..data.missing_values import fill_step
from ..data.scaling.inputs_and_targets import Scaling
from ..data.sequences import Sequences
from ..distributed.replicas import Replicas
from ..nn.compiled import compile_chunks
from ..nn.earlier_steps import in_context
from ..nn.losses import missing_label, of_numbers
from ..nn.stateful import Stateful, is_bidirectional
from ..nn.token_ids import number_of_ids, padding_id
from .amp import Precision
from .argument_checks import check_features, check_place, input_dtype
from .history import History
from .spec import Spec
from .trained_parameters import Trained

__all__ = ["Learner", "Looks"]


class Looks(NamedTuple):
    """Which other steps a model's output at a step depends on, beyond its state."""

    back: bool = False
    ahead: bool = False
    carries: bool = False  # whether it has a state

    @property
    def around(self) -> bool:
        """Whether it depends on any other step."""
        return self.back or self.ahead


@dataclasses.dataclass(eq=False)
class Learner:
    """The parts of an `Estimator` that fit, callbacks, checkpoints and files share.

    Attributes
    ----------
    model, loss, spec, device
        As in `Estimator`.
    trained
        Keeps the optimizer's parameters in line with the model's.
    replicas
        The ranks that work together.
    precision
        Autocast dtype and gradient scaling.
    compiles
        As in `Estimator`.
    seed
        As in `Estimator`.
    drawn_seed
        The seed of `fit`: `seed`, or a random number; None: not drawn yet.
    optimizer
        The one in use.
    objective
        Computes the loss: `loss`, perhaps compiled.
    scaling
        How inputs and targets are scaled; None: not scaled, or not measured yet.
    example
        One step of one sequence, ``(1, 1, F)``, in the structure of the last inputs; None: there
        were none.
    steps
        Time steps of the last inputs.
    squeezed
        Whether targets were ``(T, N)``: outputs then are, too.
    history, padding, stop_reason
        As in `Estimator`, without the underscore.
    looks
        Which other steps the model's outputs depend on, as far as known.
    data_key
        Identifies the data that callbacks last saw; None: none so far.
    """

    model: nn.Module
    loss: Callable[..., Tensor]
    trained: Trained
    spec: Spec
    device: torch.device
    replicas: Replicas
    precision: Precision
    compiles: bool
    seed: int | None
    drawn_seed: int | None = dataclasses.field(init=False)
    optimizer: optim.Optimizer = dataclasses.field(init=False)
    objective: Callable[..., Tensor] = dataclasses.field(init=False)
    scaling: Scaling | None = None
    example: Tree = None
    steps: int = 1
    squeezed: bool = False
    history: History = dataclasses.field(default_factory=History)
    padding: float = 0.0
    stop_reason: str | None = None
    looks: dict[tuple[object, ...], Looks] = dataclasses.field(default_factory=dict)
    data_key: int | None = None

    def __post_init__(self) -> None:
        self.drawn_seed = self.seed
        self.optimizer = self.trained.first
        self.prepare()

    @property
    def graphs(self) -> bool:
        """Whether updates are captured in CUDA graphs."""
        return self.compiles and self.device.type == "cuda"

    def prepare(self) -> None:
        """Check that the parts are compatible, and make the objective.

        Raises
        ------
        ValueError
            They are not.
        """
        spec = self.spec
        if self.compiles and spec.context:
            raise ValueError(
                "compile=True cannot be combined with spec.context: leave one of them out"
            )
        if spec.scale_x is not None and number_of_ids(self.model) is not None:
            raise ValueError(
                "spec.scale_x must be None, as the model looks up ids, which are not scaled, got "
                f"{spec.scale_x!r}"
            )
        self.precision.check(self.model)
        in_context(self.model, spec.context)  # raises if it cannot
        compiled = self.compiles and not self.graphs
        self.objective = compile_chunks(self.model, self.loss) if compiled else self.loss
        self.looks.clear()

    def change(self, **parts: object) -> bool:
        """Set `model`, `loss` or `spec`; return whether predictors must be made again.

        If it raises, nothing is changed.
        """
        before = {name: getattr(self, name) for name in parts}
        key = self._key()
        vars(self).update(parts)
        if key == self._key():
            return False
        try:
            self.prepare()
        except BaseException:
            vars(self).update(before)
            raise
        self.trained.model = self.model
        return True

    def _key(self) -> tuple[object, ...]:
        """Return what `prepare` depends on."""
        spec = self.spec
        return self.model, self.loss, spec.context, spec.shard

    def current_optimizer(self) -> optim.Optimizer:
        """Return the optimizer, with the parameters that the model trains now."""
        self.optimizer = self.trained.follow(self.optimizer)
        return self.optimizer

    def open(
        self,
        x: object,
        y: object = None,
        w: object = None,
        mask: object = None,
        lengths: object = None,
        *,
        strict: bool = True,
    ) -> Sequences:
        """Open data as `Estimator.fit` takes them; check that they fit the model. Collective.

        Unless `strict`, their files may change while they are read.

        Raises
        ------
        ValueError, TypeError
            They do not fit, or ranks were given different data.
        """
        check_place(self.model, self.device)
        data = Sequences(
            x, y, w, mask, lengths, dtype=input_dtype(self.model), nan=self.spec.nan,
            labels=self.spec.scale_y is None or not of_numbers(self.loss),
            missing_label=missing_label(self.loss), ids=number_of_ids(self.model),
            told=padding_id(self.model) is not None, device=self.device,
            strict=strict,
        )  # fmt: skip
        check_features(self.model, data.x)
        if self.spec.shard != "given":
            self.replicas.same_data(lambda: checksums(data))
        self.steps = data.steps
        self.example = tree_map(
            lambda s: torch.zeros(1, 1, *s.shape[2:], dtype=s.dtype, device=self.device), data.x
        )
        return data

    def check_measured(self) -> None:
        """Raise if data are to be scaled and the scaling was not measured."""
        spec = self.spec
        if self.scaling is None and (spec.scale_x is not None or spec.scale_y is not None):
            raise ValueError("the scaling has not been measured yet: call fit first")

    def scale(self, data: Sequences) -> None:
        """Scale data as in `fit`."""
        self.check_measured()
        if self.scaling is not None:
            data.scaled(self.scaling.x, self.scaling.y if data.y is not None else None)

    def step_input(self, x: object) -> Tree:
        """Return the inputs of one time step, ``(N, F)``, as the model gets them.

        Raises
        ------
        ValueError, TypeError
            They are no such inputs.
        """
        self.check_measured()
        xs, dtype, ids = step_input(x), input_dtype(self.model), number_of_ids(self.model)
        scaled = self.scaling is not None and self.scaling.x is not None
        check_step(xs, ids, dtype, scaled=scaled)
        if scaled:
            assert self.scaling is not None
            xs = self.scaling.apply(xs, dtype)
        else:
            xs = tree_map(
                lambda a: a.to(dtype) if ids is None or a.is_floating_point() else a.long(), xs
            )
        return fill_step(xs, self.spec.nan)

    @property
    def undo(self) -> Tree:
        """Undoes the scaling of outputs; None: they were not scaled."""
        return None if self.scaling is None else self.scaling.undo

    def check_compiled(self, data: Sequences) -> None:
        """Raise if a compiled model would need to know where sequences end."""
        told = Stateful(self.model).told_ends and not is_bidirectional(self.model)
        if self.compiles and data.lengths is not None and not told:
            raise ValueError(
                "with compile=True fastseq cannot test whether outputs depend on steps beyond a "
                "sequence's end: pass sequences of one length, or compile=False"
            )
