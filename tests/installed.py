"""What an installed package must do, without any test tools: trains, predicts, saves, loads.

Run it in the environment that has the package, from any folder: ``python tests/installed.py``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

import fastseq as fs


def main() -> None:
    """Raise if something does not work."""
    torch.manual_seed(0)
    x = torch.randn(40, 6, 3)
    y = x.mean(2, keepdim=True)
    model = fs.nn.Chain(fs.nn.LSTM(3, 8), nn.Linear(8, 1))
    spec = {"epochs": 20, "batchsize": 3, "seqsize": 10}
    est = fs.Estimator(model, fs.seqloss(mse_loss), torch.optim.AdamW, spec, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.h5"
        fs.h5save(file, {"x": x, "y": y})
        est.fit(fs.h5mmap(file, "x"), fs.h5mmap(file, "y"))
        est.save(Path(folder) / "model.safetensors")
        again = fs.Estimator.load(Path(folder) / "model.safetensors")
    if est.history_[-1]["loss"] > 0.5 * est.history_[0]["loss"]:
        raise AssertionError(f"it does not learn: {est.history_}")
    if (est.predict(x) != again.predict(x)).any():
        raise AssertionError("a model that was saved and loaded predicts something else")
    product = fs.bmm(torch.eye(3).expand(2, 3, 3), torch.ones(2, 3, 3))
    if not torch.equal(product, torch.ones(2, 3, 3)):
        raise AssertionError("a product is wrong")
    print(fs.info(est))


if __name__ == "__main__":
    main()
