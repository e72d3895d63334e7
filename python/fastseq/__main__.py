"""The command line, ``fastseq`` or ``python -m fastseq``: see `main`."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from . import __version__
from ._util.arguments import check_flags, meant_by
from .data.hdf5 import commands as h5
from .doctor import examine, report
from .errors import FastseqError
from .info import info


def main(words: list[str] | None = None) -> int:
    """Run the command in `words`, by default the program's arguments; return the exit code."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        prog="fastseq", description="Sequence models for PyTorch: forecasts from files, and tools."
    )
    parser.add_argument("--version", action="version", version=f"fastseq {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND"
    )

    def add(name: str, text: str, **options: Any) -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}."
        return commands.add_parser(name, help=text, description=description, **options)

    # without abbreviations: a file of settings is looked for by its whole name
    fit = add("fit", "train a forecaster on a CSV or Parquet file", allow_abbrev=False)
    predict = add("predict", "forecast with a trained forecaster")
    serve = add("serve", "answer requests by HTTP with a saved model")
    add("info", "versions, devices, MPI, kernels and transport in use, as JSON")
    add("doctor", "check this machine for problems; lines after a ! say what to do")
    h5.add_commands(add("h5", "HDF5 files: join, describe, check"))
    if not words:
        parser.print_help(sys.stderr)
        return 2
    try:
        if words[:1] in (["fit"], ["predict"]):
            # imported on use: they need scikit-learn
            from .sklearn.forecasting import forecast_commands as forecasts

            forecasts.add_predict(predict)
            if words[0] == "fit":
                forecasts.add_fit(fit, words[1:])
                check_flags(fit, words)
        if words[:1] == ["serve"]:  # imported on use: it needs FastAPI
            from .serving import server

            server.add_serve(serve)
        arguments, unknown = parser.parse_known_args(words)
        if unknown:
            command = commands.choices[arguments.command]
            advice = meant_by(command, words, unknown)
            command.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        if arguments.command == "h5":
            return h5.run(arguments)
        if arguments.command == "info":
            found = info()
            if found["ranks"]["rank"] == 0:
                print(json.dumps(found, indent=2))
            return 0
        if arguments.command == "doctor":
            print(report(examine()))
            return 0
        if arguments.command == "serve":
            server.run_serve(arguments)
            return 0
        with _plain_warnings():
            run = forecasts.fit if arguments.command == "fit" else forecasts.predict
            run(arguments)
    except (OSError, ValueError, TypeError, FastseqError) as error:
        print(f"fastseq: error: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show warnings in the body of a ``with`` without the lines of code that give them."""

    def plain(message: Warning | str, *_: object, **__: object) -> str:
        return f"fastseq: warning: {message}\n"

    usual, warnings.formatwarning = warnings.formatwarning, plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


if __name__ == "__main__":
    sys.exit(main())
