"""What `fit` calls on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..history import History
    from ..run import Run

__all__ = ["Callback"]


class Callback:
    """Base of what is called while `Estimator.fit` runs; methods that are not needed are left out.

    On several ranks all of them are called on every rank. The losses they see are those of all
    ranks, so what they decide by them is the same everywhere; files and logs come from rank 0
    (``run.first``).

    Examples
    --------
    >>> class Tell(Callback):
    ...     def on_epoch_end(self, run):
    ...         print(f"epoch {run.epoch} of {run.epochs}")
    >>> import fastseq as fs, torch
    >>> spec = dict(epochs=2, batchsize=4, seqsize=5)
    >>> model, loss = torch.nn.GRU(1, 1), fs.seqloss(torch.nn.functional.mse_loss)
    >>> est = fs.Estimator(model, loss, torch.optim.SGD, spec, callbacks=[Tell()], progress=False)
    >>> _ = est.fit(torch.zeros(10, 4, 1), torch.zeros(10, 4, 1))
    epoch 1 of 2
    epoch 2 of 2
    """

    # What it was last used with: the estimator's history, which in copies of both is that of the
    # copy, and the data. None: a state that was loaded, or nothing.
    _used: tuple[History, int] | None = None

    def is_new_to(self, run: Run) -> bool:
        """Whether what this has seen means nothing to `run`; call it in ``on_fit_begin``, once.

        It was of another estimator, or of other data: losses on them cannot be compared.
        """
        before, self._used = self._used, (run.history, run.data_key)
        if run.step == 0:
            return True
        if before is None:
            return run.has_other_data
        return before[0] is not run.history or before[1] != run.data_key

    def on_fit_begin(self, run: Run) -> None:
        """Before the first epoch of a call of `fit`; data and optimizer are known."""

    def on_epoch_begin(self, run: Run) -> None:
        """Before an epoch's first step."""

    def on_batch_end(self, run: Run) -> None:
        """After each step of the optimizer."""

    def on_epoch_end(self, run: Run) -> None:
        """After an epoch and its validation; ``run.row`` is complete, and may be added to."""

    def on_fit_end(self, run: Run) -> None:
        """At the end of a call of `fit`, also if it failed (``run.error``); last ones first."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on: numbers, strings, tensors, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
