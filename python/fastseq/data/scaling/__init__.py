"""How features are scaled: measured on the data, applied and undone in fp64."""
