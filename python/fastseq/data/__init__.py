"""Data: which slices are read when (`chunks`), from what (`sources`), ahead (`reader`)."""
