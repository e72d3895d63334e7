"""`fastseq.nn.LSTM`, `GRU` and `RNN` beside torch's, forward alone, and with backward."""

from __future__ import annotations

import torch
from harness import Bench, Mark
from recurrent import Shape
from torch import Tensor, nn

import fastseq as fs

SHAPES = [
    Shape(10, 10, 20, 10),
    Shape(10, 10, 256, 10),
    Shape(10, 10, 100, 100),
    Shape(32, 64, 64, 32),
    Shape(64, 256, 128, 50),
    Shape(1, 32, 1000, 24),
]
SMALL = SHAPES[:3]
NO_SLOWER = 1 / 0.97
TWICE = 0.5


def forward(layer: nn.RNNBase, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)[0]


def both(layer: nn.RNNBase, x: Tensor, g: Tensor) -> None:
    """Do what a training step does with its first layer: all parameters need gradients, x none."""
    for p in layer.parameters():
        p.grad = None
    layer(x)[0].backward(g)


def answers(layer: nn.RNNBase, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    """Return all that a layer computes: output, last state, gradients."""
    both(layer, x, g)
    with torch.no_grad():
        y, state = layer(x)
    states = state if isinstance(state, tuple) else (state,)
    found = {"output": y, "output without gradients": forward(layer, x)}
    found |= {f"state {i}": part for i, part in enumerate(states)}
    return found | {name: p.grad for name, p in layer.named_parameters()}


def check(kind: str, shape: Shape, layers: dict[str, nn.RNNBase], x: Tensor, g: Tensor) -> None:
    """Raise unless all agree with torch's layer in double precision, to 1e-5 of the largest."""
    exact = getattr(nn, kind)(shape.f, shape.h).double()
    (first, *_) = layers.values()
    exact.load_state_dict({name: p.double() for name, p in first.state_dict().items()})
    wanted = answers(exact, x.double(), g.double())
    for name, layer in layers.items():
        for part, answer in answers(layer, x, g).items():
            apart = float((answer - wanted[part]).abs().max() / wanted[part].abs().max())
            if not apart <= 1e-5:
                raise AssertionError(f"{name} {shape}: {part} is {apart:.1e} off")


def run(bench: Bench, kind: str, shape: Shape, threads: int) -> None:
    torch.manual_seed(0)
    x, g = torch.randn(shape.s, shape.n, shape.f), torch.randn(shape.s, shape.n, shape.h)
    theirs, ours = getattr(nn, kind)(shape.f, shape.h), getattr(fs.nn, kind)(shape.f, shape.h)
    ours.load_state_dict(theirs.state_dict())
    name = f"fastseq.nn.{kind}"
    layers = {f"torch.nn.{kind}": theirs, name: ours}
    check(kind, shape, layers, x, g)
    marks = () if kind == "RNN" else (Mark(name, TWICE if shape in SMALL else NO_SLOWER),)
    calls = {
        "forward": lambda layer: forward(layer, x),
        "forward + backward": lambda layer: both(layer, x, g),
    }
    for what, call in calls.items():
        work = shape.work(kind, backward=what != "forward")
        bench.compare(
            f"{kind} {shape}, {what}, {threads} thread(s)",
            {label: lambda layer=layer, call=call: call(layer) for label, layer in layers.items()},
            repeats=max(1, min(20, 20_000_000 // work.operations)),
            work=work,
            marks=marks,
        )


def main() -> None:
    bench = Bench.from_arguments("recurrent", rounds=40)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for kind in ("LSTM", "GRU", "RNN"):
            for shape in SHAPES:
                run(bench, kind, shape, threads)
    bench.write()


if __name__ == "__main__":
    main()
