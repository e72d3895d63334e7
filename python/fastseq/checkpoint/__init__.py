"""Checkpoints: a training run in a file, and how it goes on from there."""

__all__: list[str] = []
