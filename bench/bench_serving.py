"""`fastseq serve` beside servers of the same model, with many clients that ask again and again.

Servers run in processes of their own, one at a time under load; clients are sockets of this process
that send prepared requests. All servers must answer what the model predicts here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from harness import Bench, Mark, Seconds

import fastseq as fs

OURS = "fastseq serve"
REQUESTS = 512
STEPS, FEATURES = 96, 3
SERVERS = {
    "FastAPI, one at a time": [str(Path(__file__).parent / "peer_servers.py"), "fastapi"],
    "LitServe, one at a time": [str(Path(__file__).parent / "peer_servers.py"), "litserve"],
    "LitServe, in batches": [str(Path(__file__).parent / "peer_servers.py"), "litserve-batches"],
    OURS: ["-m", "fastseq", "serve"],
}


class Server:
    """A server's process."""

    def __init__(self, words: list[str], model: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._process = subprocess.Popen(
            [sys.executable, *words, str(model), "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.latencies: list[float] = []
        ends = time.monotonic() + 120
        while not self._listens():
            if time.monotonic() > ends or self._process.poll() is not None:
                raise RuntimeError(f"{words} does not listen")
            time.sleep(0.2)

    def _listens(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def load(self, requests: list[bytes], clients: int) -> Seconds:
        """Let all clients ask; return the seconds it takes."""
        begin = time.perf_counter()
        asyncio.run(self._load(requests, clients))
        return Seconds(time.perf_counter() - begin)

    async def _load(self, requests: list[bytes], clients: int) -> None:
        parts = [requests[n::clients] for n in range(clients)]
        await asyncio.gather(*(self._client(part) for part in parts))

    async def _client(self, requests: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for request in requests:
            begin = time.perf_counter()
            await self.ask(reader, writer, request)
            self.latencies.append(time.perf_counter() - begin)
        writer.close()

    async def ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> bytes:
        """Send one request; return the answer's body."""
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        return await reader.readexactly(length)

    def answer(self, request: bytes) -> dict[str, object]:
        """Return the answer to one request."""

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            body = await self.ask(reader, writer, request)
            writer.close()
            return body

        return json.loads(asyncio.run(ask()))

    def end(self) -> None:
        os.killpg(self._process.pid, signal.SIGTERM)  # with the workers that it has started
        try:
            self._process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def request_of(record: np.ndarray) -> bytes:
    body = json.dumps({"records": [record.tolist()]}).encode()
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def compare(
    bench: Bench,
    case: str,
    servers: dict[str, Server],
    requests: list[bytes],
    clients: int,
    marks: tuple[Mark, ...],
) -> None:
    """Let `clients` ask each server, and add rates and latencies to the case."""
    for server in servers.values():
        server.latencies.clear()
    bench.compare(
        f"{case}, {clients} clients",
        {name: partial(server.load, requests, clients) for name, server in servers.items()},
        marks=marks,
    )
    for name, server in servers.items():
        quantiles = statistics.quantiles(server.latencies, n=100)
        row = bench.cases[-1]["contenders"][name]
        row["latency_ms"] = {"median": 1e3 * quantiles[49], "p99": 1e3 * quantiles[98]}
        row["requests_per_s"] = len(requests) / row["median_us"] * 1e6
        bench.say(
            f"  {name:34} {row['requests_per_s']:8.0f} requests/s, latency median "
            f"{1e3 * quantiles[49]:.1f} ms, p99 {1e3 * quantiles[98]:.1f} ms"
        )


def main() -> None:
    bench = Bench.from_arguments("serving", rounds=8)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((REQUESTS, STEPS, FEATURES)).astype(np.float32)
    y = np.where(x.sum((1, 2)) > 0, "up", "down")
    requests = [request_of(one) for one in x]
    for hidden in (128, 32):
        model = fs.SequenceClassifier("lstm", hidden_size=hidden, epochs=2, random_state=0)
        model.fit(x, y)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
            file = Path(folder) / "model.safetensors"
            model.save(file)
            servers: dict[str, Server] = {}
            for name, words in SERVERS.items():
                servers[name] = Server(words, file)
                running.callback(servers[name].end)
                found = servers[name].answer(requests[0])
                wanted = model.predict_proba(x[:1])
                np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-5)
            case = f"LSTM({hidden}) over {STEPS} steps of {FEATURES} features"
            compare(bench, case, servers, requests, 64, (Mark(OURS, 1 / 5),))
            if hidden == 32:
                compare(bench, case, {OURS: servers[OURS]}, requests, 200, ())
    bench.write()


if __name__ == "__main__":
    main()
