"""Training steps without autograd; built from csrc/python/step_module.cpp."""

from typing import Any, ClassVar, TypeAlias

from ._comm import Bucketizer

class _Enum:
    def __init__(self, value: int) -> None: ...
    def __int__(self) -> int: ...
    def __index__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def value(self) -> int: ...

class Activation(_Enum):
    __members__: ClassVar[dict[str, Activation]]
    relu: ClassVar[Activation]
    sigmoid: ClassVar[Activation]
    tanh: ClassVar[Activation]

class Pooling(_Enum):
    __members__: ClassVar[dict[str, Pooling]]
    last: ClassVar[Pooling]
    mean: ClassVar[Pooling]
    max: ClassVar[Pooling]

class Cell(_Enum):
    __members__: ClassVar[dict[str, Cell]]
    lstm: ClassVar[Cell]
    gru: ClassVar[Cell]
    rnn_tanh: ClassVar[Cell]
    rnn_relu: ClassVar[Cell]

class LossKind(_Enum):
    __members__: ClassVar[dict[str, LossKind]]
    mse: ClassVar[LossKind]
    mae: ClassVar[LossKind]
    huber: ClassVar[LossKind]
    smooth_l1: ClassVar[LossKind]
    binary_with_logits: ClassVar[LossKind]
    cross_entropy: ClassVar[LossKind]
    pinball: ClassVar[LossKind]

class Loss:
    def __init__(
        self,
        kind: LossKind,
        parameters: list[float] = [],
        *,
        of_known: bool = False,
        part_weights: list[float] = [],
    ) -> None: ...
    @property
    def kind(self) -> LossKind: ...
    @property
    def parameters(self) -> list[float]: ...
    @property
    def of_known(self) -> bool: ...
    @property
    def part_weights(self) -> list[float]: ...
    members: int

class OptimizerKind(_Enum):
    __members__: ClassVar[dict[str, OptimizerKind]]
    sgd: ClassVar[OptimizerKind]
    adam: ClassVar[OptimizerKind]
    rmsprop: ClassVar[OptimizerKind]

class End(_Enum):
    __members__: ClassVar[dict[str, End]]
    all: ClassVar[End]
    paused: ClassVar[End]
    not_finite: ClassVar[End]
    nonfinite_gradient: ClassVar[End]
    bad_label: ClassVar[End]

# Addresses of a parameter and of its gradient.
_Weights = tuple[int, int]
# Address, strides of time steps and of sequences.
_Rows = tuple[int, int, int]

# Chunks, weight and weighted losses that are held for an update.
_Held = tuple[int, float, float]

class LinearLayer:
    def __init__(self, inputs: int, outputs: int, weight: _Weights, bias: _Weights) -> None: ...

class ActivationLayer:
    def __init__(self, kind: Activation, features: int) -> None: ...

class DropoutLayer:
    def __init__(self, rate: float, features: int, number: int) -> None: ...

class RecurrentLayer:
    def __init__(
        self,
        *,
        cell: Cell,
        inputs: int,
        hidden: int,
        layers: int,
        biases: bool,
        bidirectional: bool,
        dropout: float,
        takes_lengths: bool,
        carries: bool,
        number: int,
        weights: list[_Weights],
    ) -> None: ...

class SegmentRnnLayer:
    def __init__(
        self,
        *,
        horizon: int,
        variables: int,
        outputs: int,
        lags: int,
        features: int,
        segment: int,
        linear: LinearLayer,
        embed: LinearLayer,
        recurrent: RecurrentLayer,
        mix: LinearLayer,
        dropout: DropoutLayer,
        out: LinearLayer,
    ) -> None: ...

class Settings:
    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        beta1: float = 0.0,
        beta2: float = 0.0,
        eps: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        decoupled: bool = False,
        amsgrad: bool = False,
        centered: bool = False,
    ) -> None: ...

class Outcome:
    @property
    def end(self) -> End: ...
    @property
    def chunks(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def rank(self) -> int: ...
    @property
    def attention(self) -> bool: ...

_HeadLayer: TypeAlias = LinearLayer | ActivationLayer | DropoutLayer

class PooledLayer:
    def __init__(self, parts: list[Pooling], features: int, head: list[_HeadLayer]) -> None: ...

_SingleLayer: TypeAlias = _HeadLayer | RecurrentLayer | SegmentRnnLayer | PooledLayer

class MembersLayer:
    def __init__(self, members: list[list[_SingleLayer]]) -> None: ...

_Layer: TypeAlias = _SingleLayer | MembersLayer
# value, gradient, numel, average, square, other, step, step is fp64, group, part
_Parameter: TypeAlias = tuple[int, int, int, int, int, int, int, bool, int, int]
# where a layer writes it, the parameter's own, numel
_Gradient: TypeAlias = tuple[int, int, int]

class Model32:
    def __init__(self, layers: list[_Layer], parallel_for: int) -> None: ...
    def set_state(self, state: list[int]) -> None: ...
    def forward(self, x: _Rows, steps: int, sequences: int, y: int) -> None: ...

class Update32:
    def __init__(self, optimizer: OptimizerKind, parameters: list[_Parameter]) -> None: ...
    def run(
        self,
        settings: list[Settings],
        clip_value: float | None,
        clip_norm: float | None,
        norm: float | None,
    ) -> None: ...

class Step32:
    def __init__(
        self,
        model: Model32,
        loss: Loss,
        update: Update32,
        chunks: int,
        gradients: list[_Gradient],
        buckets: Bucketizer | None,
        bf16: bool,
    ) -> None: ...
    def train(
        self,
        x: _Rows,
        y: _Rows,
        y_weights: int,
        labels: bool,
        last_only: bool,
        weights: _Rows,
        sizes: list[int],
        sequences: int,
        lengths: int,
        seeds: list[int],
        settings: list[Settings],
        clip_value: float | None,
        clip_norm: float | None,
        attention: bool,
        held: _Held,
    ) -> tuple[list[tuple[float, float]], Outcome, _Held]: ...

class StepPredictor32:
    def __init__(
        self,
        model: Model32,
        inputs: int,
        x_scaling: tuple[int, int],
        y_scaling: tuple[int, int],
    ) -> None: ...
    def run(
        self,
        x: object,
        sequences: int,
        y: int,
        wide: bool,
        objects: tuple[Any, ...],
        containers: tuple[Any, ...],
        entries: tuple[Any, ...],
        tensors: tuple[Any, ...],
    ) -> bool: ...

class Model64:
    def __init__(self, layers: list[_Layer], parallel_for: int) -> None: ...
    def set_state(self, state: list[int]) -> None: ...
    def forward(self, x: _Rows, steps: int, sequences: int, y: int) -> None: ...

class Update64:
    def __init__(self, optimizer: OptimizerKind, parameters: list[_Parameter]) -> None: ...
    def run(
        self,
        settings: list[Settings],
        clip_value: float | None,
        clip_norm: float | None,
        norm: float | None,
    ) -> None: ...

class Step64:
    def __init__(
        self,
        model: Model64,
        loss: Loss,
        update: Update64,
        chunks: int,
        gradients: list[_Gradient],
        buckets: Bucketizer | None,
        bf16: bool,
    ) -> None: ...
    def train(
        self,
        x: _Rows,
        y: _Rows,
        y_weights: int,
        labels: bool,
        last_only: bool,
        weights: _Rows,
        sizes: list[int],
        sequences: int,
        lengths: int,
        seeds: list[int],
        settings: list[Settings],
        clip_value: float | None,
        clip_norm: float | None,
        attention: bool,
        held: _Held,
    ) -> tuple[list[tuple[float, float]], Outcome, _Held]: ...

class StepPredictor64:
    def __init__(
        self,
        model: Model64,
        inputs: int,
        x_scaling: tuple[int, int],
        y_scaling: tuple[int, int],
    ) -> None: ...
    def run(
        self,
        x: object,
        sequences: int,
        y: int,
        wide: bool,
        objects: tuple[Any, ...],
        containers: tuple[Any, ...],
        entries: tuple[Any, ...],
        tensors: tuple[Any, ...],
    ) -> bool: ...

def has_bf16() -> bool: ...
def is_unchanged(
    objects: tuple[Any, ...],
    containers: tuple[Any, ...],
    entries: tuple[Any, ...],
    tensors: tuple[Any, ...],
) -> bool: ...
