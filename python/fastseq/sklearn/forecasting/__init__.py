"""`SequenceForecaster` and its parts."""
