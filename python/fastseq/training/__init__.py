"""Training: the loop, what it is given, and what it leaves behind."""
