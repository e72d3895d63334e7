"""Servers as their guides write them: FastAPI, and LitServe without and with batches."""

from __future__ import annotations

import argparse
from typing import Any

import litserve
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

import fastseq as fs


class Body(BaseModel):
    records: list[list[list[float]]]


def answer(model: fs.SequenceClassifier, records: Any) -> dict[str, Any]:
    return {"probabilities": model.predict_proba(np.array(records, np.float32)).tolist()}


def run_fastapi(model: fs.SequenceClassifier, port: int) -> None:
    app = FastAPI()

    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        return answer(model, body.records)

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", access_log=False)


class Api(litserve.LitAPI):
    """One request at a time, or several."""

    path = ""

    def setup(self, device: str) -> None:  # noqa: ARG002
        self.model = fs.SequenceClassifier.load(self.path)

    def decode_request(self, request):  # LitServe reads its annotation
        return np.array(request["records"][0], np.float32)

    def predict(self, x: Any) -> Any:
        if x.ndim == 3:  # LitServe has stacked several
            return self.model.predict_proba(x)
        return self.model.predict_proba(x[None])[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"probabilities": [output.tolist()]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    if arguments.kind == "fastapi":
        run_fastapi(fs.SequenceClassifier.load(arguments.model), arguments.port)
        return
    single = arguments.kind == "litserve"
    api = Api() if single else Api(max_batch_size=64, batch_timeout=0.002)
    api.path = arguments.model  # its process gets the instance
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(
        host="127.0.0.1", port=arguments.port, log_level="critical", generate_client_file=False
    )


if __name__ == "__main__":
    main()
