"""Serve a forecaster by HTTP: save it, start `fastseq serve`, ask it from several threads at once.

The server is a process that has nothing but the file. It forecasts series that it has never seen,
as `predict` does. Requests that come while it is busy go through the model together.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fastseq as fs
from fastseq.sklearn import plot_forecast

DAY, LEVELS, CLIENTS = 24, (0.1, 0.5, 0.9), (1, 4, 16)
HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to this machine


@contextlib.contextmanager
def serving(file: Path) -> Iterator[str]:
    """Serve the model of a file in the body of a ``with``; yield the server's address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "fastseq", "serve", str(file), "--port", port]
    with subprocess.Popen([*words, "--log-level", "warning"]) as server:
        try:
            while server.poll() is None:
                with contextlib.suppress(OSError), HTTP.open(f"http://127.0.0.1:{port}/health"):
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()  # it still answers what it has begun, and `with` waits for it


def ask(address: str, series: np.ndarray) -> np.ndarray:
    """Return the forecast of a series, ``(horizon, levels)``."""
    request = urllib.request.Request(f"{address}/predict")  # noqa: S310 (of our own server)
    request.add_header("Content-Type", "application/json")
    with HTTP.open(request, json.dumps({"records": [series.tolist()]}).encode()) as answer:
        return np.array(json.load(answer)["predictions"][0])


def time_requests(address: str, series: np.ndarray, clients: int) -> np.ndarray:
    """Let clients ask for a second, each when it has got its answer; return all latencies in ms."""

    def client(number: int) -> list[float]:
        times = [time.perf_counter()]
        while times[-1] < times[0] + 1:
            ask(address, series[number % len(series)])
            times.append(time.perf_counter())
        return list(1000 * np.diff(times))

    with ThreadPoolExecutor(clients) as pool:
        return np.concatenate(list(pool.map(client, range(clients))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("serving.png"))
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    hours = np.arange(10 * DAY) + rng.uniform(0, DAY, (20, 1))
    series = np.sin(2 * np.pi * hours / DAY) + rng.normal(0, 0.1, hours.shape).cumsum(1)
    known, new = series[:12], series[12:, :-DAY]
    forecaster = fs.SequenceForecaster(DAY, quantiles=LEVELS, season=DAY, epochs=10, random_state=0)
    forecaster.fit(list(known))
    with tempfile.TemporaryDirectory() as folder:
        forecaster.save(Path(folder) / "model.safetensors")
        with serving(Path(folder) / "model.safetensors") as address:
            answers = [ask(address, past) for past in new]
            latencies = [time_requests(address, new, clients) for clients in CLIENTS]
    apart = np.abs(np.array(answers) - forecaster.predict(list(new))).max()
    print(f"{len(answers)} forecasts, which differ from those of predict by at most {apart:.0e}")
    print("clients  requests per second  median (ms)  99th percentile (ms)")
    labels = []
    for n, each in zip(CLIENTS, latencies, strict=True):
        rate, middle, most = 1000 * n / each.mean(), *np.percentile(each, (50, 99))
        print(f"{n:7}{rate:21.0f}{middle:13.1f}{most:22.1f}")
        labels.append(f"{n} client{'s' * (n > 1)}:\n{rate:.0f} per second")

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plot_forecast(new[0, -4 * DAY :], answers[0], LEVELS, actual=series[12, -DAY:], ax=left)
    left.set(title="a forecast that came by HTTP", xlabel="hour", ylabel="value")
    right.boxplot(latencies, whis=(1, 99), showfliers=False, widths=0.5)
    right.set_xticks(range(1, len(labels) + 1), labels)
    right.set(title="median, middle half and 98 %", ylabel="latency (ms)", ylim=(0, None))
    figure.savefig(options.out, dpi=100)
    print(f"Picture: {options.out} (right: how much longer each client waits where there are more)")
    if apart > 1e-4:
        raise SystemExit("the server's forecasts are not those of predict")


if __name__ == "__main__":
    main()
