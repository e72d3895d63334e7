"""`serve`: run the app of a model, by default for this machine only."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import logging
import os
import socket
from pathlib import Path
from typing import Any

from .._util.optional_imports import need
from ..checkpoint.estimator_files import saved_kind
from ..estimator import Estimator
from .app import make_app

_SECONDS_TO_END = 10  # for requests that are being answered when the server is told to end

__all__ = ["add_serve", "load_served", "run_serve", "serve"]


def serve(
    model: Any, *, host: str = "127.0.0.1", port: int = 8000, log_level: str = "info", **limits: Any
) -> None:
    """Serve a model until the process is told to end, by Ctrl-C or SIGTERM.

    Parameters
    ----------
    model
        A fitted model, or the file of one: what `save` wrote.
    host, port
        Where to listen; by default only this machine's programs can connect. There is no
        encryption and no login: for other machines, put a proxy that has both in front.
    log_level
        Of uvicorn, from ``"critical"`` to ``"trace"``.
    **limits
        As in `make_app`.

    Raises
    ------
    CheckpointError, OSError
        The file cannot be read.
    ValueError, TypeError
        As `make_app`; or the file needs code: load it, and pass the model.
    MissingFeatureError
        FastAPI or uvicorn is not installed.

    Examples
    --------
    In the shell: ``fastseq serve model.safetensors --port 8000``.
    """
    uvicorn = need("uvicorn", "serve")
    if isinstance(model, str | os.PathLike):
        model = load_served(model)
    hosts = _own_names(host)
    app = make_app(model, **{"hosts": hosts, **limits})
    config = uvicorn.Config(
        app, log_level=log_level, access_log=False, proxy_headers=False, server_header=False,
        timeout_graceful_shutdown=_SECONDS_TO_END,
    )  # fmt: skip
    # What is there now stays: collections of garbage between requests need not look at it (tenths
    # of a second).
    gc.collect()
    gc.freeze()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listening:
        name = f"[{host}]" if ":" in host else host
        logging.getLogger("uvicorn.error").info(  # uvicorn says no address of a socket it was given
            "serving %s on http://%s:%d; its page /docs shows what requests must look like",
            type(model).__name__, name, listening.getsockname()[1],
        )  # fmt: skip
        uvicorn.Server(config).run(sockets=[listening])


def load_served(path: str | os.PathLike[str]) -> Any:
    """Return the model of a file, of whichever kind it is."""
    kind = saved_kind(Path(path))
    if kind == "estimator":
        return Estimator.load(path, progress=False)
    from ..sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

    kinds: dict[str, Any] = {
        "classifier": SequenceClassifier,
        "regressor": SequenceRegressor,
        "forecaster": SequenceForecaster,
    }
    if kind not in kinds:
        raise ValueError(f"{os.fspath(path)} holds a {kind}, not a model that was saved by save")
    try:
        return kinds[kind].load(path)
    except ValueError as error:
        if "pass module=" not in str(error):
            raise
        name = kinds[kind].__name__
        raise ValueError(
            f"{os.fspath(path)} needs the code of its module: in Python, load it by "
            f"fs.{name}.load(path, module), and pass the model to fs.serving.serve"
        ) from error


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``serve``."""
    parser.add_argument("model", help="a file that save, or fastseq fit, has written")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="where to listen (default: this machine only)",
    )
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="the port's number (default: 8000)"
    )
    parser.add_argument(
        "--batchsize", type=int, default=64, metavar="N", help="most records at once (default: 64)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="X",
        help="seconds in which a request must have come, and then be answered (default: 30)",
    )
    parser.add_argument(
        "--most-bytes",
        type=int,
        default=16 << 20,
        metavar="N",
        help="bytes that a request may have (default: 16 MiB)",
    )
    parser.add_argument(
        "--hosts",
        nargs="+",
        metavar="NAME",
        help="names by which clients may call the server (default: this machine's, if --host is)",
    )
    levels = ("critical", "error", "warning", "info", "debug", "trace")
    parser.add_argument(
        "--log-level", default="info", choices=levels, help="what the server prints (default: info)"
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 16:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)


def run_serve(arguments: argparse.Namespace) -> None:
    """Run ``serve``."""
    hosts = {} if arguments.hosts is None else {"hosts": arguments.hosts}
    serve(
        arguments.model,
        host=arguments.host,
        port=arguments.port,
        log_level=arguments.log_level,
        batchsize=arguments.batchsize,
        timeout=arguments.timeout,
        most_bytes=arguments.most_bytes,
        **hosts,
    )


def _own_names(host: str) -> tuple[str, ...]:
    """Return the names by which a server is called: web pages must not reach a loopback one."""
    if host == "localhost":
        return "localhost", "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        return ("*",)
    name = f"[{host}]" if ":" in host else host
    return ("localhost", name) if loopback else ("*",)
