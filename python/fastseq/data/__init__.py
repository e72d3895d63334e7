"""Data: which slices are read when (`chunks`), from what (`sources`, `h5`), ahead (`reader`)."""
