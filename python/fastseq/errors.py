"""The errors that fastseq raises besides `ValueError` and `TypeError`."""

from __future__ import annotations

__all__ = [
    "BusyError",
    "CheckpointError",
    "CommunicationError",
    "DivergedError",
    "FastseqError",
    "MissingFeatureError",
    "NonFiniteError",
    "ReadError",
    "RemoteError",
]


def __dir__() -> list[str]:
    return __all__


class FastseqError(Exception):
    """Base of fastseq's own errors.

    Examples
    --------
    >>> import fastseq as fs
    >>> model, loss = nn.Linear(1, 1), fs.seqloss(nn.MSELoss())
    >>> spec = dict(epochs=1, batchsize=1, seqsize=5)
    >>> est = fs.Estimator(model, loss, torch.optim.SGD, spec, progress=False)
    >>> x = torch.full((5, 1, 1), torch.nan)
    >>> try:
    ...     est.fit(x, x)
    ... except fs.FastseqError as error:
    ...     print(type(error).__name__)
    NonFiniteError
    """


class BusyError(FastseqError, RuntimeError):
    """Another thread or run uses what this one needs: a model, a folder of checkpoints, an `out`.

    Examples
    --------
    >>> import fastseq as fs, threading
    >>> x = torch.zeros(5, 1, 1)
    >>> def predict():
    ...     try:
    ...         est.predict(x)
    ...     except fs.BusyError as error:
    ...         print(error)
    >>> def predict_elsewhere(run):  # in a callback, but in another thread
    ...     thread = threading.Thread(target=predict)
    ...     thread.start()
    ...     thread.join()
    >>> est = fs.Estimator(
    ...     nn.Linear(1, 1), fs.seqloss(nn.MSELoss()), torch.optim.SGD,
    ...     dict(epochs=1, batchsize=1, seqsize=5), callbacks=[predict_elsewhere], progress=False,
    ... )
    >>> est = est.fit(x, x)
    another thread trains this model: wait for its fit to end, ...
    """


class CheckpointError(FastseqError, ValueError):
    """A file is not a checkpoint, incomplete, or of something else; the message says which.

    Examples
    --------
    >>> import fastseq as fs, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "model.safetensors")
    >>> _ = path.write_text("no model")
    >>> fs.Estimator.load(path)
    Traceback (most recent call last):
    fastseq.errors.CheckpointError: ... is incomplete, or was not written by fastseq: ...
    """


class NonFiniteError(FastseqError, FloatingPointError):
    """NaN or infinities: in the data (the message says where), or in the loss (`DivergedError`).

    Examples
    --------
    >>> import fastseq as fs
    >>> est = fs.Estimator(
    ...     nn.Linear(1, 1), fs.seqloss(nn.MSELoss()), torch.optim.SGD,
    ...     dict(epochs=1, batchsize=1, seqsize=5), progress=False,
    ... )
    >>> x = torch.zeros(5, 1, 1)
    >>> x[3] = torch.nan
    >>> est.predict(x)
    Traceback (most recent call last):
    fastseq.errors.NonFiniteError: x holds NaN at step 3, sequence 0, feature 0 ...
    """


class DivergedError(NonFiniteError):
    """The loss or a gradient became NaN or infinite while the weights were trained.

    The message names epoch, block and chunk, or the rank.

    Examples
    --------
    >>> import fastseq as fs
    >>> est = fs.Estimator(
    ...     nn.Linear(1, 1), fs.seqloss(nn.MSELoss()), lambda p: torch.optim.SGD(p, lr=1e30),
    ...     dict(epochs=2, batchsize=1, seqsize=5), progress=False,
    ... )
    >>> x = torch.ones(10, 1, 1)
    >>> est.fit(x, 2 * x)
    Traceback (most recent call last):
    fastseq.errors.DivergedError: the loss is inf in epoch 1, block 0, chunk 1 ...
    """


class ReadError(FastseqError, OSError):
    """Data could not be read: a file became shorter, changed while it was read, or failed.

    Parameters
    ----------
    message
        What could not be read, and why.
    index
        Which read of a request failed, from 0.

    Attributes
    ----------
    index
        Which read of the request failed.

    Examples
    --------
    >>> import fastseq as fs, os, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "data.h5")
    >>> fs.h5save(path, {"x": np.zeros((2000, 4, 1))})
    >>> x = fs.h5mmap(path, "x")
    >>> os.truncate(path, 4096)  # as if it had not been copied completely
    >>> est = fs.Estimator(
    ...     nn.Linear(1, 1), fs.seqloss(nn.MSELoss()), torch.optim.SGD,
    ...     dict(epochs=1, batchsize=4, seqsize=50), progress=False,
    ... )
    >>> est.predict(x)
    Traceback (most recent call last):
    fastseq.errors.ReadError: x could not be read at steps 0 to ...
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class CommunicationError(FastseqError, RuntimeError):
    """The ranks could not communicate, or were about to do different things.

    Examples
    --------
    >>> import fastseq as fs
    >>> fs.distributed.communicator(None).broadcast_(torch.ones(3), root=1)
    Traceback (most recent call last):
    fastseq.errors.CommunicationError: broadcast: root must be one of the 1 ranks, got 1
    """


class MissingFeatureError(FastseqError, ImportError):
    """A package is not installed, or fastseq was built without what a call needs.

    The message says how to get it.

    Examples
    --------
    >>> import fastseq as fs
    >>> try:
    ...     report = fs.callbacks.ClassificationReport()
    ... except fs.MissingFeatureError:  # without scikit-learn
    ...     report = fs.callbacks.Log()
    """


class RemoteError(FastseqError, RuntimeError):
    """Another rank has failed.

    Parameters
    ----------
    rank
        The lowest rank that failed.
    message
        What failed there.

    Attributes
    ----------
    rank, message
        The parameters.

    Examples
    --------
    >>> import fastseq as fs
    >>> try:  # what `launch` and `fit` do if rank 1 fails
    ...     raise fs.RemoteError(1, "ValueError: no data")
    ... except fs.RemoteError as error:
    ...     print(error.rank, error)
    1 rank 1 failed: ValueError: no data
    """

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(rank, message)
        self.rank = rank
        self.message = message

    def __str__(self) -> str:
        return f"rank {self.rank} failed: {self.message}"
