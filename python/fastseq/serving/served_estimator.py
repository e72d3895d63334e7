"""An `Estimator` behind the server: whole series, and step by step for many clients."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._util.tree import Tree, tree_leaves, tree_map
from ..estimator import Estimator, learner_of
from ..nn.stateful import batch_dims, is_bidirectional
from ..nn.token_ids import number_of_ids
from ..training.argument_checks import input_dtype
from .json_values import array_of, listed
from .record_types import list_of, step_type

__all__ = ["ServedEstimator", "Step", "StepError"]


class Step(NamedTuple):
    """A client's next time step."""

    client: str
    number: int
    x: list[float]


class StepError(Exception):
    """A step that does not follow the client's last one; `full`: there is no room for clients."""

    def __init__(self, text: str, *, full: bool = False) -> None:
        super().__init__(text)
        self.full = full


class _Client:
    """How far a client's series is."""

    def __init__(self) -> None:
        self.steps = 0
        self.state: Tree = None
        self.x: Any = None  # of the last step
        self.answer: Any = None  # to it
        self.seen = time.monotonic()


class ServedEstimator:
    """Predicts whole series, and takes the steps of clients together.

    Parameters
    ----------
    est
        A fitted estimator of one input array.
    clients
        The most series at once.
    idle
        Seconds after which a client's series may be given up if room is needed.

    Raises
    ------
    ValueError
        The estimator is not fitted, or has several inputs.
    """

    static_type = None
    probabilities = False

    def __init__(self, est: Estimator, *, clients: int, idle: float) -> None:
        example = learner_of(est).example
        if not isinstance(example, Tensor):
            raise ValueError(
                "make_app needs a fitted model of one input array: fit it, or serve models of "
                "several inputs by an app of your own"
            )
        self._est, self._most, self._idle = est, clients, idle
        self._features = example.shape[-1]
        missing = est.spec.nan != "raise"
        ids, most = number_of_ids(est.model), torch.finfo(input_dtype(est.model)).max
        self._kind: Any = float if ids is None else np.int64
        self.step_type: Any = step_type(self._features, missing=missing, ids=ids, most=most)
        self.record_type: Any = list_of(self.step_type)
        self._clients: dict[str, _Client] = {}
        self.steps: bool = not is_bidirectional(est.model)
        self._dims: Tree = None
        self.metadata: dict[str, Any] = {
            "features": self._features,
            "steps": self.steps,
            "trained_epochs": len(est.history_),
        }

    def run(self, pairs: Sequence[tuple[Any, None]]) -> list[Any]:
        """Return the outputs of whole series."""
        records = [record for record, _ in pairs]
        if len(set(map(len, records))) == 1:
            x = array_of(records, self._kind)
            found = self._est.predict(x.swapaxes(0, 1))
            return [_listed(found, (slice(None), n)) for n in range(len(records))]
        # sorted by length, so that little is padded
        found = self._est.predict([array_of(one, self._kind) for one in records])
        return [_listed(found, n, lists=True) for n in range(len(records))]

    def answer(self, found: Sequence[Any]) -> dict[str, Any]:
        """Return the answer to one request of whole series."""
        return {"predictions": list(found)}

    def run_steps(self, steps: Sequence[Step]) -> list[Any]:
        """Return the outputs of clients' steps, or a `StepError` where one is not the next."""
        answers: list[Any] = [None] * len(steps)
        groups: dict[Hashable, list[tuple[int, _Client]]] = {}
        later: list[int] = []  # of clients that have a step in this batch already
        busy: set[str] = set()
        for place, step in enumerate(steps):
            if step.client in busy:
                later.append(place)
                continue
            busy.add(step.client)
            try:
                client = self._client(step)
            except StepError as error:
                answers[place] = error
                continue
            if step.number < client.steps:  # sent again, as the answer was lost
                answers[place] = client.answer
                continue
            shapes = tuple(a.shape for a in tree_leaves(client.state))
            groups.setdefault((client.steps > 0, shapes), []).append((place, client))
        for group in groups.values():
            places, clients = zip(*group, strict=True)
            found = self._advance(clients, [steps[place].x for place in places])
            for place, client, answer in zip(places, clients, found, strict=True):
                answers[place] = self._kept(steps[place].client, client) or answer
        if later:
            found = self.run_steps([steps[place] for place in later])
            for place, answer in zip(later, found, strict=True):
                answers[place] = answer
        return answers

    def end(self, client: str) -> bool:
        """Forget a client's series; return whether there was one."""
        return self._clients.pop(client, None) is not None

    def _client(self, step: Step) -> _Client:
        """Return who a step is of: it is the next one, or the last one again, or starts a series.

        A new series counts once its first step is done: until then the old one stays.
        """
        client = self._clients.get(step.client)
        again = client is not None and step.number == client.steps - 1 and step.x == client.x
        if step.number == 0 and not again:
            return _Client()
        if client is None:
            raise StepError(
                f"client {step.client!r} has no series here, but this is its step {step.number}: "
                "start with step 0"
            )
        client.seen = time.monotonic()
        if step.number != client.steps and not again:
            raise StepError(
                f"client {step.client!r} must send step {client.steps} next, got step "
                f"{step.number}: send each step once, in order, or start again with step 0"
            )
        return client

    def _kept(self, name: str, client: _Client) -> StepError | None:
        """Keep a client's new series; return an error if there is no room for it."""
        if client.steps > 1:  # kept already, or ended meanwhile
            return None
        if name not in self._clients and len(self._clients) >= self._most:
            before = time.monotonic() - self._idle
            for other, one in list(self._clients.items()):
                if one.seen < before:
                    self.end(other)
            if len(self._clients) >= self._most:
                return StepError(f"there are {self._most} clients already: try later", full=True)
        self._clients[name] = client
        return None

    def _advance(self, clients: Sequence[_Client], xs: Sequence[list[float]]) -> list[Any]:
        """Take one step of clients whose states have the same shapes."""
        est = self._est
        x = np.array(xs, self._kind)
        if clients[0].steps == 0:
            est.reset_state()
        else:
            est.set_state(self._joined([client.state for client in clients]))
        found = est.step(x)
        state = est.get_state()
        if self._dims is None:
            dtype = input_dtype(est.model) if self._kind is float else torch.int64
            self._dims = batch_dims(est.model, torch.from_numpy(x[None]).to(est.device, dtype))
        for n, client in enumerate(clients):
            client.state, client.x, client.answer = self._row(state, n), xs[n], _listed(found, n)
            client.steps += 1
        return [client.answer for client in clients]

    def _joined(self, states: Sequence[Tree]) -> Tree:
        """Return the states of clients as one."""

        def join(dim: int, *parts: Tensor) -> Tensor:
            return parts[0] if dim < 0 else torch.cat(parts, dim)

        return tree_map(join, self._dims, *states)

    def _row(self, state: Tree, n: int) -> Tree:
        def row(a: Tensor, dim: int) -> Tensor:
            return a if dim < 0 else a.narrow(dim, n, 1).clone()

        return tree_map(row, state, self._dims)


def _listed(found: Tree, place: Any, *, lists: bool = False) -> Any:
    """Return a part of outputs as lists; `lists`: outputs are lists of the sequences' arrays."""
    if isinstance(found, dict):
        return {key: _listed(one, place, lists=lists) for key, one in found.items()}
    if isinstance(found, tuple) or (isinstance(found, list) and not lists):
        return [_listed(one, place, lists=lists) for one in found]
    return listed(found[place])
