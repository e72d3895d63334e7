"""The program of a rank that `launch` starts."""

from __future__ import annotations

import functools
import os
import pickle
import sys
from typing import Any, BinaryIO

from .._util.optional_imports import need
from .._util.threads import Thread
from ..errors import CommunicationError, RemoteError
from .launching import read_message, write_message


def main() -> None:
    """Read the work from standard input, do it, and write what comes of it to the given pipe."""
    with os.fdopen(int(sys.argv[1]), "wb") as results:
        # The function's own standard input is empty.
        orders = os.fdopen(os.dup(0), "rb")
        with open(os.devnull, "rb") as empty:
            os.dup2(empty.fileno(), 0)
        try:
            _send(results, ("value", _work(orders)))
        except SystemExit as end:
            if end.code in (None, 0):
                _send(results, ("value", None))
            else:
                _send(results, ("error", f"SystemExit: {end.code}"))
            raise
        except BaseException as error:
            kind = "told" if isinstance(error, (RemoteError, CommunicationError)) else "error"
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            _send(results, (kind, text))
            raise


def _work(orders: BinaryIO) -> Any:
    path, call = pickle.loads(read_message(orders))  # noqa: S301 (of the process that started this)
    Thread(functools.partial(_end_with_parent, orders), daemon=True).start()
    sys.path[:] = path
    function, args, kwargs = pickle.loads(call)  # noqa: S301
    return function(*args, **kwargs)


def _end_with_parent(orders: BinaryIO) -> None:
    orders.read()
    os._exit(1)


def _send(results: BinaryIO, outcome: tuple[str, Any]) -> None:
    try:
        data = need("cloudpickle", "fs.launch").dumps(outcome)
    except Exception as error:
        raise TypeError(f"the result of the function cannot be sent: {error}") from error
    write_message(results, data)


if __name__ == "__main__":
    main()
