"""`fastseq serve` as a process: many clients at once, slow and vanishing ones, and `batch_predict`."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import schemathesis
import torch
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs
from fastseq.__main__ import main
from fastseq.serving import batch_predict, make_app

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 12, 2)).astype(np.float32)
Y = np.where(X.sum((1, 2)) > 0, "up", "down")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server of a file; it ends with the body of a ``with``."""

    def __init__(self, file, *words: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastseq", "serve", str(file), "--port", str(self.port), *words],
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        ends = time.monotonic() + 120
        while True:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            assert time.monotonic() < ends
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, self.errors = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, -signal.SIGTERM)
        assert "Traceback" not in self.errors


@pytest.fixture(scope="module")
def classifier():
    return fs.SequenceClassifier("gru", epochs=2, random_state=0).fit(X, Y)


@pytest.fixture(scope="module")
def server(classifier, tmp_path_factory):
    file = tmp_path_factory.mktemp("serve") / "model.safetensors"
    classifier.save(file)
    with Server(file, "--timeout", "3", "--log-level", "warning") as running:
        yield running


def request_of(body: dict, path: str = "/predict", length: int | None = None) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content) if length is None else length}\r\n\r\n"
    )
    return head.encode() + content


async def ask(reader, writer, request: bytes) -> tuple[int, dict]:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().splitlines()
        if line.startswith(b"content-length")
    )
    return int(head.split()[1]), json.loads(await reader.readexactly(length))


def test_no_answer_is_lost_or_swapped_among_200_clients(server, classifier):
    wanted = classifier.predict_proba(X)

    async def client(n: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for turn in range(5):
            rows = [(n + 7 * turn + k) % len(X) for k in range(1 + n % 3)]
            status, found = await ask(reader, writer, request_of({"records": X[rows].tolist()}))
            assert status == 200, found
            np.testing.assert_allclose(found["probabilities"], wanted[rows], atol=1e-6)
        writer.close()

    async def every() -> None:
        await asyncio.gather(*(client(n) for n in range(200)))

    asyncio.run(every())


@pytest.mark.slow
def test_steps_of_200_clients(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(6, 200, 2)
    model = fs.nn.Chain(fs.nn.LSTM(2, 4), nn.Linear(4, 1))
    spec = {"epochs": 1, "batchsize": 50, "seqsize": 6}
    est = fs.Estimator(model, fs.seqloss(mse_loss), torch.optim.SGD, spec, progress=False)
    est.fit(x, x[..., :1])
    est.save(tmp_path / "model.safetensors")
    wanted = est.predict(x)
    with Server(tmp_path / "model.safetensors", "--log-level", "warning") as running:

        async def client(n: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            for step in range(6):
                body = {"client": str(n), "step": step, "x": x[step, n].tolist()}
                _, found = await ask(reader, writer, request_of(body, "/step"))
                np.testing.assert_allclose(found["outputs"], wanted[step, n], atol=1e-6)
            writer.close()

        async def every() -> None:
            await asyncio.gather(*(client(n) for n in range(200)))

        asyncio.run(every())


def test_clients_that_hang_up_or_send_nothing(server, classifier):
    request = request_of({"records": X[:1].tolist()})
    for part in (request[:20], request[:-10], request):  # each vanishes without an answer
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as one:
                one.sendall(part)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as one:
        one.sendall(request_of({}, length=100))  # the rest of the body never comes
        answer = b"".join(iter(lambda: one.recv(4096), b"")).decode()  # until it hangs up
    assert answer.startswith("HTTP/1.1 408")
    assert "did not come within 3 seconds" in answer
    found = batch_predict(server.url, X[:3])
    assert found["prediction"].tolist() == classifier.predict(X[:3]).tolist()


def test_batch_predict_returns_a_frame_in_order(server, classifier):
    found = batch_predict(server.url, X[:50], batch_size=7)
    assert list(found.columns) == ["prediction", "probability_down", "probability_up"]
    assert found["prediction"].tolist() == classifier.predict(X[:50]).tolist()
    wanted = classifier.predict_proba(X[:50])
    np.testing.assert_allclose(found[["probability_down", "probability_up"]], wanted, atol=1e-6)
    uneven = [torch.from_numpy(x[: 3 + n]) for n, x in enumerate(X[:4])]
    assert batch_predict(server.url + "/", uneven)["prediction"].tolist() == [
        classifier.predict([x.numpy()])[0] for x in uneven
    ]
    assert batch_predict(server.url, []).empty
    with pytest.raises(ValueError, match=r"records 2 to 3 with 422: records.3.0 must have"):
        batch_predict(server.url, [X[0], X[1], X[2], X[3, :, :1]], batch_size=2)
    with pytest.raises(ValueError, match="infinite"):
        batch_predict(server.url, X[:1] * np.inf)
    with pytest.raises(ValueError, match="url must be like"):
        batch_predict("localhost:8000", X)
    with pytest.raises(ValueError, match="static has 1 rows, but there are 2 records"):
        batch_predict(server.url, X[:2], static=[[1.0]])
    for wrong in (3, np.array(3.0), {1.0}, b"x"):
        with pytest.raises(TypeError, match="must be an array, a list or a data frame"):
            batch_predict(server.url, wrong)
    with pytest.raises(TypeError, match="must hold numbers and texts, got complex64"):
        batch_predict(server.url, X[:1] * 1j)
    with pytest.raises(ValueError, match="retries must be an integer"):
        batch_predict(server.url, X[:1], retries=-1)
    for url in (server.url + "/?a=1", "http://127.0.0.1:99999"):
        with pytest.raises(ValueError, match="url must be like"):
            batch_predict(url, X[:1])


@pytest.mark.slow
def test_batch_predict_waits_for_a_server_that_starts(classifier, tmp_path):
    classifier.save(tmp_path / "model.safetensors")
    port, found = free_port(), []

    def client() -> None:
        url = f"http://127.0.0.1:{port}"
        found.append(batch_predict(url, X[:5], retries=10))

    waiting = threading.Thread(target=client)
    waiting.start()
    with Server(tmp_path / "model.safetensors", port=port) as running:
        waiting.join(120)
    assert f"serving SequenceClassifier on http://127.0.0.1:{port}; " in running.errors
    assert found[0]["prediction"].tolist() == classifier.predict(X[:5]).tolist()


class Failing(BaseHTTPRequestHandler):
    """Is overloaded twice, and answers then with one prediction."""

    asked = 0

    def do_POST(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"predictions": [1.5]}' if self.asked > 2 else b'{"detail": "try later"}'
        self.send_response(200 if self.asked > 2 else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_batch_predict_tries_again():
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        with pytest.raises(ConnectionError, match="records 0 to 0 with 503: try later"):
            batch_predict(url, [[1.0]], retries=0)
        Failing.asked = 0
        pd.testing.assert_frame_equal(
            batch_predict(url, [[1.0]]), pd.DataFrame({"prediction": [1.5]})
        )
        assert Failing.asked == 3
        with pytest.raises(ValueError, match="did not answer with 2 predictions"):
            batch_predict(url, [[1.0], [2.0]])
        other.shutdown()


def test_files_that_cannot_be_served(tmp_path, capsys):
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"x" * 100)
    for file, said in [
        (tmp_path / "none", "No such file"),
        (tmp_path, "folder"),
        (other, "weights"),
    ]:
        assert main(["serve", str(file)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("fastseq: error: ")
        assert said in error
        assert error.count("\n") == 1


def test_ports_and_levels_that_cannot_be_used(tmp_path, classifier, capsys):
    file = str(tmp_path / "model.safetensors")
    classifier.save(file)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", file, "--port", port]) == 1
    error = capsys.readouterr().err
    assert error.startswith("fastseq: error: ")
    assert "in use" in error
    for words in (["--port", "-1"], ["--port", "99999"], ["--log-level", "loud"]):
        with pytest.raises(SystemExit):
            main(["serve", file, *words])
    own = fs.SequenceClassifier(lambda n_in, n_out, rng: nn.Linear(n_in, n_out), epochs=1)
    own.fit(X, Y).save(file)
    assert main(["serve", file]) == 1
    assert "needs the code of its module: in Python, load it by" in capsys.readouterr().err


def every_kind(classifier) -> list[object]:
    torch.manual_seed(0)
    x = torch.randn(6, 4, 2)
    est = fs.Estimator(
        fs.nn.Chain(fs.nn.GRU(2, 3), nn.Linear(3, 1)), fs.seqloss(mse_loss), torch.optim.SGD,
        {"epochs": 1, "batchsize": 4, "seqsize": 6}, progress=False,
    ).fit(x, x[..., :1])  # fmt: skip
    series = [np.sin(np.arange(40) / 5), np.cos(np.arange(40) / 5)]
    return [classifier, est, fs.SequenceForecaster(3, epochs=1).fit(series)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", range(3), ids=["classifier", "estimator", "forecaster"])
def test_answers_are_as_the_schema_says(classifier, kind):
    """Drawn requests, valid ones and others, never fail the server, nor leave its schema."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(every_kind(classifier)[kind]))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {"/health", "/metadata"} < {one.path for one in operations}
    for operation in operations:

        @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case) -> None:
            # numbers may be so large that they become infinite when scaled: these are refused
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
