"""Which of a model's parameters an optimizer trains, kept up to date as the model changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import Tensor, nn, optim

from .argument_checks import make_optimizer
from .known_optimizers import obstacle

__all__ = ["Trained"]

_SHOWN = 3


class Trained:
    """Keeps an optimizer's parameters in line with the model's as layers are replaced or frozen.

    Trainable parameters missing from an optimizer when it is first seen are left out on purpose;
    those that come later are not.

    Parameters
    ----------
    given
        The optimizer, or the callable that makes one, as in `Estimator`.
    model
        The model.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> trained = Trained(optim.SGD, model)
    >>> optimizer = trained.follow(trained.first)
    >>> model[1] = nn.Linear(2, 1)
    >>> trained.follow(optimizer).param_groups[0]["params"][-1] is model[1].bias
    True
    """

    def __init__(
        self, given: optim.Optimizer | Callable[..., optim.Optimizer], model: nn.Module
    ) -> None:
        self._make: Callable[..., optim.Optimizer] | None = None
        if not isinstance(given, optim.Optimizer):
            self._make = given
        self.model = model
        self.first: optim.Optimizer = make_optimizer(given, model)
        self._note(self.first)

    def __getstate__(self) -> dict[str, object]:
        """Leave the callable out: many cannot be pickled, and it may refer to another model."""
        return {**self.__dict__, "_make": None}

    def follow(self, optimizer: optim.Optimizer) -> optim.Optimizer:
        """Return the optimizer, with the parameters that the model trains now.

        Its state of parameters that stay, and the settings of its groups, are kept.

        Raises
        ------
        ValueError
            It lacks a parameter, or has one that is not the model's, and there is no callable to
            make a new one; or it has one twice; or all parameters are frozen.
        """
        if optimizer is not self._seen:
            make_optimizer(optimizer, self.model)  # the user has set it
            self._note(optimizer)
        params = _params(optimizer)
        counts = Counter(params)
        if len(counts) < len(params):
            twice = next(p for p, count in counts.items() if count > 1)
            raise ValueError(
                f"the optimizer has {self._names([twice])} twice: put it into one group only"
            )
        own = set(self.model.parameters())
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("the model has nothing to train: all its parameters are frozen")
        lacking = [p for p in trained if p not in counts and p not in self._left_out]
        strange = sum(p not in own for p in counts)
        if lacking or strange:
            optimizer = self._renewed(optimizer, lacking, strange)
        _match_state(optimizer)
        return optimizer

    def _note(self, optimizer: optim.Optimizer) -> None:
        has = set(_params(optimizer))
        self._seen = optimizer
        self._left_out = {p for p in self.model.parameters() if p.requires_grad and p not in has}

    def _names(self, params: list[nn.Parameter]) -> str:
        names = [name for name, p in self.model.named_parameters() if any(p is q for q in params)]
        return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])

    def _renewed(
        self, optimizer: optim.Optimizer, lacking: list[nn.Parameter], strange: int
    ) -> optim.Optimizer:
        if self._make is None:
            wrong = [f"lacks {self._names(lacking)}, which the model trains"] if lacking else []
            if strange:
                wrong.append(f"has {strange} parameter(s) that are no longer the model's")
            raise ValueError(
                f"the optimizer {' and '.join(wrong)}: layers were replaced or unfrozen after it "
                "was made; use its add_param_group, set est.optimizer to a new one, or give "
                "Estimator a callable that makes it, which fit calls again"
            )
        new = make_optimizer(self._make, self.model)
        if type(new) is type(optimizer):
            # Keep the same object, as schedules hold it.
            groups, old = new.param_groups, optimizer.param_groups
            if len(groups) == len(old):
                for group, before in zip(groups, old, strict=True):
                    group.update({**before, "params": group["params"]})
            own = set(_params(new))
            new.state.update({p: state for p, state in optimizer.state.items() if p in own})
            optimizer.param_groups, optimizer.state = groups, new.state
            new = optimizer
        self._note(new)
        return new


def _params(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _match_state(optimizer: optim.Optimizer) -> None:
    """Convert an optimizer's state to its parameters' present dtype and device."""
    if obstacle(optimizer) is not None:
        return
    for p, state in optimizer.state.items():
        for value in state.values():
            if not isinstance(value, Tensor) or value.dim() == 0 or value.shape != p.shape:
                continue
            if value.dtype != p.dtype or value.device != p.device:
                optimizer.load_state_dict(optimizer.state_dict())  # which converts all
                return
