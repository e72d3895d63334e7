"""What a recurrent layer has to do, counted."""

from __future__ import annotations

import dataclasses

from roofline import Work

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclasses.dataclass(frozen=True)
class Shape:
    """F features, H hidden units, N sequences and S steps of one layer in one direction."""

    f: int
    h: int
    n: int
    s: int

    def __str__(self) -> str:
        return f"({self.f}, {self.h}, {self.n}, {self.s})"

    def operations(self, kind: str, *, backward: bool) -> int:
        """Count those of matrix products; the input needs no gradient, as in a first layer."""
        rows = 2 * self.s * self.n * GATES[kind] * self.h
        forward = rows * (self.f + self.h)
        return 2 * forward + rows * self.h if backward else forward

    def bytes_moved(self, kind: str, *, backward: bool) -> int:
        """Count what must be read or written once, in fp32.

        Forward: input, output, weights. Backward: the gates (and an LSTM's cells) are written on
        the way there and read on the way back, as are input and output; the output's gradient and
        the weights are read, the weights' gradients are written.
        """
        steps = self.s * self.n
        weights = GATES[kind] * self.h * (self.f + self.h + 2)
        moved = steps * (self.f + self.h) + weights
        if backward:
            kept = GATES[kind] + (kind == "LSTM")
            moved += steps * (2 * kept * self.h + self.f + 2 * self.h) + 2 * weights
        return 4 * moved

    def work(self, kind: str, *, backward: bool) -> Work:
        return Work(
            self.operations(kind, backward=backward), self.bytes_moved(kind, backward=backward)
        )
