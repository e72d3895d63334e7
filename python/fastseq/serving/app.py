"""`make_app`: an ASGI app that serves one fitted model."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import math
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any

from .._util.optional_imports import need

need("fastapi", "fastseq.serving")

from fastapi import APIRouter, FastAPI, Request, Response  # noqa: E402
from fastapi.responses import JSONResponse, RedirectResponse  # noqa: E402
from fastapi.routing import APIRoute  # noqa: E402
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model  # noqa: E402

from ..errors import FastseqError  # noqa: E402
from ..estimator import Estimator  # noqa: E402
from ..training.spec import check_count  # noqa: E402
from .batcher import Batcher, OverloadError  # noqa: E402
from .record_types import list_of  # noqa: E402
from .request_limits import RequestLimits  # noqa: E402
from .served_estimator import ServedEstimator, Step, StepError  # noqa: E402

if TYPE_CHECKING:
    from ..sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor

__all__ = ["make_app"]

_LOG = logging.getLogger(__name__)
_LONGEST = 900  # characters of an error, which may quote what was sent


class _RefusedError(Exception):
    """The model does not take what a request holds."""

    def __init__(self, text: str, status: int = 422) -> None:
        super().__init__(text)
        self.status = status


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _JsonRoute(APIRoute):
    """A route whose handler takes one model, read from the body's bytes: quicker than FastAPI's."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        asked = self.endpoint.__annotations__["request"]

        async def handle(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise _RefusedError(
                    f"send JSON, with Content-Type: application/json, got {kind!r}", 415
                )
            try:
                body = asked.model_validate_json(await request.body())
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                status = 400 if first["type"] == "json_invalid" else 422
                raise _RefusedError(_sentence(first), status) from error
            found: Response = await self.endpoint(body)
            return found

        return handle


def _sentence(error: Mapping[str, Any]) -> str:
    """Return what pydantic finds wrong with a body, and where, in words that users know."""
    where = ".".join(map(str, error["loc"])) or "the body"
    kind, given, bounds = error["type"], error["input"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"{where}: {error['msg']}"
    if kind in ("too_short", "too_long"):
        if not given:
            return f"{where} must not be empty"
        wanted = bounds.get("min_length", bounds.get("max_length"))
        return f"{where} must have {wanted} value{'s' * (wanted != 1)}, got {len(given)}"
    if kind == "float_type" and given is None:
        return (
            f"{where} is null, but the model takes no missing values: train it with "
            'nan="mask" to have it take them'
        )
    return f"{where}: {error['msg']}, got {given!r:.60}"


class ErrorAnswer(BaseModel):
    """What is wrong, in a sentence."""

    detail: str


class StepAnswer(BaseModel):
    """The outputs of a step."""

    client: str
    step: int
    outputs: Any


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The body is no JSON"},
    408: {"model": ErrorAnswer, "description": "The body came too slowly"},
    413: {"model": ErrorAnswer, "description": "The body is too large"},
    415: {"model": ErrorAnswer, "description": "The body is not said to be JSON"},
    422: {"model": ErrorAnswer, "description": "The body is not what the model takes"},
    503: {"model": ErrorAnswer, "description": "Overloaded, or no answer in time: try later"},
}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorAnswer, "description": "The step does not follow the client's last one"}
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer, "description": "There is no such client"}
}


def make_app(
    model: Estimator | SequenceClassifier | SequenceRegressor | SequenceForecaster,
    *,
    batchsize: int = 64,
    most_bytes: int = 16 << 20,
    timeout: float = 30.0,
    waiting: int = 1024,
    clients: int = 10_000,
    idle: float = 3600.0,
    hosts: Sequence[str] = ("*",),
) -> FastAPI:
    """Return an app that serves a fitted model, for uvicorn or another ASGI server.

    ``GET /health`` answers once the model can; ``GET /metadata`` says what it is, and ``/docs`` and
    ``/openapi.json`` what requests must be. ``POST /predict`` takes records and answers with
    predictions, in their order; requests that arrive while the model runs go through it together.
    Estimators with a state also take ``POST /step``, one time step of a client's own series; and
    forecasters ``POST /forecasts``, by the ids of the training series (``GET /series``).

    Parameters
    ----------
    model
        A fitted model. It must not be trained while it is served.
    batchsize
        The most records of several requests that the model gets at once.
    most_bytes
        The size of the largest request, in bytes.
    timeout
        Seconds in which a request must have come, and in which it is answered.
    waiting
        The most records that wait; further requests are refused, for the client to try later.
    clients, idle
        The most clients whose series go on by ``/step``, and the seconds without a step after which
        a client may have to start again, if others need the room.
    hosts
        Names by which clients may call the server: others are refused. ``"*"``: any.

    Returns
    -------
    fastapi.FastAPI
        The app; ``uvicorn.run(app)`` runs it.

    Raises
    ------
    ValueError, TypeError
        The model is not fitted, or is one of several inputs, or is something else.
    MissingFeatureError
        FastAPI is not installed.

    Examples
    --------
    >>> import fastseq as fs, numpy as np
    >>> from starlette.testclient import TestClient
    >>> X, y = np.random.default_rng(0).standard_normal((60, 9, 3)), np.arange(60) % 2
    >>> model = fs.SequenceClassifier(epochs=2, random_state=0).fit(X, y)
    >>> with TestClient(fs.serving.make_app(model)) as client:
    ...     answer = client.post("/predict", json={"records": X[:2].tolist()}).json()
    >>> answer["predictions"] == model.predict(X[:2]).tolist()
    True
    """
    counts = {"batchsize": batchsize, "most_bytes": most_bytes, "waiting": waiting}
    for name, count in (counts | {"clients": clients}).items():
        check_count(name, count)
    for name, seconds in (("timeout", timeout), ("idle", idle)):
        if not (isinstance(seconds, Real) and math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"{name} must be a number of seconds, got {seconds!r}")
    if timeout == 0:
        raise ValueError("timeout must be above 0 seconds")
    if isinstance(hosts, str) or not all(isinstance(host, str) for host in hosts):
        raise TypeError(f"hosts must be a list of names, got {hosts!r}")
    served = _served(model, clients=clients, idle=idle)
    batchers: list[Batcher] = []

    def batcher(run: Any) -> Batcher:
        batchers.append(Batcher(run, batchsize=batchsize, waiting=waiting, timeout=timeout))
        return batchers[-1]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for one in batchers:
            one.close()

    app = FastAPI(title=f"fastseq: {type(model).__name__}", lifespan=lifespan)
    app.add_middleware(RequestLimits, most=most_bytes, timeout=timeout, hosts=hosts)
    _answer_errors(app)
    _add_information(app, model, served.metadata)
    router = APIRouter(route_class=_JsonRoute)
    if served.record_type is not None:
        _add_predict(router, served, batcher(served.run))
    if isinstance(served, ServedEstimator):
        if served.steps:
            _add_steps(router, served, batcher(served.run_steps))
            _add_end(app, served)
    elif hasattr(served, "ids"):
        _add_forecasts(router, served, batcher(served.run_forecasts))
        _add_series(app, served)
    app.include_router(router)
    return app


def _served(model: Any, *, clients: int, idle: float) -> Any:
    if isinstance(model, Estimator):
        return ServedEstimator(model, clients=clients, idle=idle)
    if hasattr(model, "get_params") and hasattr(model, "__sklearn_is_fitted__"):
        from ..sklearn import SequenceClassifier, SequenceForecaster, SequenceRegressor
        from .served_forecaster import ServedForecaster
        from .served_predictor import ServedPredictor

        if isinstance(model, SequenceClassifier | SequenceRegressor | SequenceForecaster):
            if not model.__sklearn_is_fitted__():
                raise ValueError("make_app needs a fitted model: call fit, or load a saved one")
            kind = ServedForecaster if isinstance(model, SequenceForecaster) else ServedPredictor
            return kind(model)
    raise TypeError(
        "make_app takes an Estimator, SequenceClassifier, SequenceRegressor or "
        f"SequenceForecaster, got {type(model).__name__}"
    )


def _answer_errors(app: FastAPI) -> None:
    """Answer every error with a status and one sentence."""

    def answer(status: int, text: str) -> JSONResponse:
        headers = {"Retry-After": "1"} if status == 503 else None
        short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        return JSONResponse({"detail": short}, status, headers)

    @app.exception_handler(_RefusedError)
    async def refused(_: Request, error: _RefusedError) -> JSONResponse:
        return answer(error.status, " ".join(str(error).split()))

    @app.exception_handler(OverloadError)
    async def overloaded(_: Request, __: Exception) -> JSONResponse:
        return answer(503, "too many records wait for the model: try later")

    @app.exception_handler(asyncio.TimeoutError)
    async def late(_: Request, __: Exception) -> JSONResponse:
        return answer(503, "the model did not answer in time: try later, or send fewer records")

    @app.exception_handler(StepError)
    async def out_of_order(_: Request, error: StepError) -> JSONResponse:
        return answer(503 if error.full else 409, str(error))

    @app.exception_handler(404)
    async def unknown(request: Request, _: Exception) -> JSONResponse:
        paths = ", ".join(app.openapi()["paths"])
        return answer(404, f"this model has no {request.url.path}, but {paths}: see /docs")

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        _LOG.error("a request failed", exc_info=error)
        return answer(500, "the server failed; its log says why")


async def _answers(batcher: Batcher, records: Sequence[Any]) -> list[Any]:
    """Return the answers to records, or say that the model does not take them."""
    try:
        return await batcher.answers(records)
    except (ValueError, TypeError, FastseqError) as error:
        raise _RefusedError(str(error)) from error


def _add_information(app: FastAPI, model: Any, metadata: dict[str, Any]) -> None:
    version = importlib.metadata.version("fastseq-torch")
    whole = {"model": type(model).__name__, "fastseq": version, **metadata}

    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse("docs")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Say that the server answers."""
        return {"status": "ok"}

    @app.get("/metadata")
    async def describe() -> dict[str, Any]:
        """Say what the model is."""
        return whole


def _add_post(
    router: APIRouter,
    path: str,
    handler: Callable[[Any], Coroutine[Any, Any, JSONResponse]],
    asked: type[BaseModel],
    answer: type[BaseModel],
    errors: dict[int | str, dict[str, Any]] | None = None,
) -> None:
    """Add a route: `handler` gets a request of the type `asked`, which is made for the model."""
    handler.__annotations__["request"] = asked
    router.add_api_route(
        path, handler, methods=["POST"], response_model=answer, responses=_ERRORS | (errors or {})
    )


def _add_predict(router: APIRouter, served: Any, batcher: Batcher) -> None:
    fields: dict[str, Any] = {"records": (list_of(served.record_type), ...)}
    if served.static_type is not None:
        fields["static"] = (list_of(served.static_type), ...)
    asked = create_model("PredictRequest", __base__=_Request, **fields)
    given: dict[str, Any] = {"predictions": (list[Any], ...)}
    if served.probabilities:
        given |= {"classes": (list[Any] | None, ...), "probabilities": (list[Any], ...)}
    answer = create_model("PredictAnswer", **given)

    async def predict(request: Any) -> JSONResponse:
        """Predict records, in their order."""
        records, static = request.records, getattr(request, "static", None)
        if static is not None and len(static) != len(records):
            raise _RefusedError(
                f"static has {len(static)} rows, but there are {len(records)} records"
            )
        pairs = list(zip(records, static or [None] * len(records), strict=True))
        return JSONResponse(served.answer(await _answers(batcher, pairs)))

    _add_post(router, "/predict", predict, asked, answer)


def _add_steps(router: APIRouter, served: ServedEstimator, batcher: Batcher) -> None:
    name = Annotated[str, Field(min_length=1, max_length=128)]
    asked = create_model(
        "StepRequest",
        __base__=_Request,
        client=(name, ...),
        step=(Annotated[int, Field(ge=0, strict=True)], ...),
        x=(served.step_type, ...),
    )

    async def step(request: Any) -> JSONResponse:
        """Take the next time step of a client's series; step 0 starts a new series."""
        one = Step(request.client, request.step, request.x)
        (found,) = await _answers(batcher, [one])
        if isinstance(found, StepError):
            raise found
        return JSONResponse({"client": one.client, "step": one.number, "outputs": found})

    _add_post(router, "/step", step, asked, StepAnswer, _CONFLICT)


def _add_end(app: FastAPI, served: ServedEstimator) -> None:
    @app.delete("/clients/{client:path}", status_code=204, responses=_UNKNOWN, response_model=None)
    async def end(client: str) -> JSONResponse | None:
        """End a client's series."""
        if served.end(client):
            return None
        return JSONResponse({"detail": f"there is no client {client!r}"}, 404)


def _add_forecasts(router: APIRouter, served: Any, batcher: Batcher) -> None:
    from .served_forecaster import ForecastRequest

    horizon = Annotated[int, Field(ge=1, le=10 * served.horizon, strict=True)]
    fields: dict[str, Any] = {
        "ids": (
            list_of(Annotated[str, Field(strict=True)] | Annotated[int, Field(strict=True)]) | None,
            None,
        ),
        "horizon": (horizon, served.horizon),
    }
    if served.future_type is not None:
        fields["future"] = (served.future_type | None, None)
    asked = create_model("ForecastRequest", __base__=_Request, **fields)
    one: Any = create_model(
        "Forecast", id=(str | int, ...), times=(list[Any] | None, ...), values=(dict[str, Any], ...)
    )
    every: Any = list[one]
    answer = create_model("ForecastAnswer", forecasts=(every, ...))

    async def forecasts(request: Any) -> JSONResponse:
        """Forecast series by their ids, all of them by default."""
        future = getattr(request, "future", None)
        wanted = ForecastRequest(request.ids, request.horizon, future)
        (found,) = await _answers(batcher, [wanted])
        return JSONResponse({"forecasts": found})

    _add_post(router, "/forecasts", forecasts, asked, answer)


def _add_series(app: FastAPI, served: Any) -> None:
    @app.get("/series")
    async def series() -> dict[str, list[str | int]]:
        """Return the ids of the series that can be forecast."""
        return {"ids": served.ids}
