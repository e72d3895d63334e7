"""Data: the order of slices (`chunks`), what they are read from (`sources`), reading ahead."""
