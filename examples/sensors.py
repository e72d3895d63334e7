"""Recognise what a sensor's wearer does, from recordings of different lengths.

The recordings are drawn: three axes of acceleration, for 40 to 120 steps, with a rhythm and a
strength that depend on what is done, and on the wearer. Wearers of the test part are in no other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay

import fastseq as fs

RHYTHMS = {"stand": (0.0, 0.1), "walk": (0.45, 0.6), "climb": (0.38, 0.8), "run": (0.8, 1.2)}


def record(rng: np.random.Generator, kind: str, wearer: float) -> np.ndarray:
    """Return a recording, ``(T, 3)``."""
    rhythm, strength = RHYTHMS[kind]
    steps = np.arange(rng.integers(40, 121))
    phase = rng.uniform(0, 2 * np.pi) + np.array([0, 0.7, 1.9])
    swing = strength * np.sin(rhythm * (1 + 0.1 * wearer) * steps[:, None] + phase)
    climbs = (kind == "climb") * np.linspace(0, 0.8, len(steps))[:, None] * np.array([0, 0, 1])
    return (swing + climbs + rng.normal(0, 0.4, (len(steps), 3))).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--recordings", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("sensors.png"))
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    wearers = rng.normal(size=20)
    who = rng.integers(20, size=options.recordings)
    labels = rng.choice(list(RHYTHMS), options.recordings)
    recordings = [record(rng, kind, wearers[n]) for kind, n in zip(labels, who, strict=True)]
    known = who < 14
    classifier = fs.SequenceClassifier("gru", hidden_size=24, epochs=30, random_state=0)
    classifier.fit([r for r, k in zip(recordings, known, strict=True) if k], labels[known])

    others = [r for r, k in zip(recordings, known, strict=True) if not k]
    found = classifier.predict(others)
    right = float((found == labels[~known]).mean())
    print(f"{right:.1%} of {len(others)} recordings of six other wearers are recognised")
    ax = Figure(figsize=(5, 4.5), layout="constrained").add_subplot()
    ConfusionMatrixDisplay.from_predictions(
        labels[~known], found, ax=ax, cmap="Blues", colorbar=False
    )
    ax.set(xlabel="recognised", ylabel="done", title="recordings")
    ax.figure.savefig(options.out, dpi=100)
    print(f"Picture: {options.out} (off the diagonal: what is taken for something else)")
    if right < 0.85:
        raise SystemExit("it recognises too little")


if __name__ == "__main__":
    main()
