"""Kinds of targets: what a classifier or regressor learns, and how predictions come back."""
