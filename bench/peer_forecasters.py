"""Other packages' forecasters at their defaults, as `bench_forecast.py` runs them.

NeuralForecast's models see the last 4 horizons, are trained once on all that is known, and forecast
from every step of what is coming. statsforecast's are fitted once for each series, and their
parameters kept. Over a long test part they forecast once a season, as each forecast runs over the
whole past.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Contender", "Panel", "Predict", "peers"]

_LONG = 24  # an LSTM takes 10 s of an update over 4 horizons of 96 steps, for 1000 updates
Predict: TypeAlias = Callable[[], np.ndarray]


@dataclasses.dataclass
class Contender:
    """A forecaster to compare.

    Parameters
    ----------
    fit
        Trains it for a seed, and returns what makes the forecasts.
    random
        Whether other seeds give other forecasts.
    stride
        Steps from one forecast to the next.
    slow
        Whether it takes hours, and runs only if asked for.
    package
        What it needs; imported before its time is taken.
    """

    fit: Callable[[int], Predict]
    random: bool = True
    stride: int = 1
    slow: bool = False
    package: str = "fastseq"


@dataclasses.dataclass
class Panel:
    """Series ``(T_i,)`` to learn from and forecast.

    Parameters
    ----------
    known
        The series.
    horizon, season
        Steps of a forecast and of a season.
    coming
        What follows each series: forecasts are made from its every step. None: one at the end of
        each.
    """

    known: list[np.ndarray]
    horizon: int
    season: int
    coming: list[np.ndarray] | None = None

    def frame(self, *, whole: bool = False) -> Any:
        """Return a long frame of the known steps, or of the `whole` series."""
        import pandas as pd

        parts = self.known
        if whole and self.coming is not None:
            parts = [np.concatenate(pair) for pair in zip(self.known, self.coming, strict=True)]
        return pd.concat([
            pd.DataFrame({"unique_id": f"{n:04}", "ds": np.arange(len(y)), "y": y})
            for n, y in enumerate(parts)
        ])  # fmt: skip

    def in_order(self, table: Any, model: str) -> np.ndarray:
        """Return a model's forecasts in a long frame as ``(N, origins, horizon)``."""
        table = table.reset_index() if "unique_id" not in table.columns else table
        by = ["unique_id", "cutoff", "ds"] if "cutoff" in table.columns else ["unique_id", "ds"]
        values = table.sort_values(by)[model].to_numpy(float)
        return values.reshape(len(self.known), -1, self.horizon)


def peers(panel: Panel, shaped: Callable[[np.ndarray], np.ndarray]) -> dict[str, Contender]:
    """Return the others that are installed; `shaped` gets forecasts ``(N, origins, horizon)``."""
    found: dict[str, Contender] = {}
    if importlib.util.find_spec("neuralforecast"):
        for kind in ("NHITS", "LSTM", "DLinear"):
            fit = functools.partial(_neural, kind, panel, shaped)
            slow = kind == "LSTM" and panel.horizon > _LONG
            found[f"NeuralForecast {kind}"] = Contender(fit, slow=slow, package="neuralforecast")
    if importlib.util.find_spec("statsforecast"):
        stride = 1 if panel.coming is None else panel.season
        for kind in ("AutoETS", "AutoTheta"):
            fit = functools.partial(_statistical, kind, panel, shaped)
            found[f"statsforecast {kind}"] = Contender(
                fit, random=False, stride=stride, package="statsforecast"
            )
    return found


def _neural(
    kind: str, panel: Panel, shaped: Callable[[np.ndarray], np.ndarray], seed: int, **options: Any
) -> Predict:
    from neuralforecast import NeuralForecast, models
    from pytorch_lightning.plugins.environments import LightningEnvironment

    warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning.*")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    model = getattr(models, kind)(
        h=panel.horizon, input_size=4 * panel.horizon, random_seed=seed, accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, plugins=[LightningEnvironment()],  # it need not find MPI
        **options,
    )  # fmt: skip
    nf = NeuralForecast(models=[model], freq=1)
    nf.fit(panel.frame())

    def predict() -> np.ndarray:
        if panel.coming is None:
            return shaped(panel.in_order(nf.predict(), kind))
        table = nf.cross_validation(
            panel.frame(whole=True), n_windows=None, test_size=len(panel.coming[0]), step_size=1,
            use_fitted=True,
        )  # fmt: skip
        return shaped(panel.in_order(table, kind))

    return predict


def _statistical(
    kind: str, panel: Panel, shaped: Callable[[np.ndarray], np.ndarray], seed: int  # noqa: ARG001
) -> Predict:  # fmt: skip
    from statsforecast import StatsForecast, models

    make = functools.partial(getattr(models, kind), season_length=panel.season)
    if panel.coming is None:
        sf = StatsForecast(models=[make()], freq=1, n_jobs=1)
        sf.fit(panel.frame())
        return lambda: shaped(panel.in_order(sf.predict(h=panel.horizon), kind))
    fitted = [make().fit(y) for y in panel.known]
    coming = panel.coming

    def predict() -> np.ndarray:
        return shaped(np.stack([
            [
                model.forward(np.concatenate([y, later[:step]]), panel.horizon)["mean"]
                for step in range(0, len(later) - panel.horizon + 1, panel.season)
            ]
            for model, y, later in zip(fitted, panel.known, coming, strict=True)
        ]))  # fmt: skip

    return predict
