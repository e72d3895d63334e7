"""Training from graphs, with a stand-in that records operators on the CPU as a graph would.

Like a CUDA graph it does nothing while it records, replays operators with the tensors and numbers
that they got then, and refuses to read a value.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from jobs import mpirun
from models import Custom, assert_same_parameters
from torch import nn, optim
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastseq as fs
from fastseq._util.progress import Progress
from fastseq.data.chunk_plan import ChunkPlan
from fastseq.data.sequences import Sequences
from fastseq.nn import recurrent_arguments
from fastseq.training.cuda_graph import WARM_UP, Graphs, GraphTrainer, can_record, make_capturable
from fastseq.training.loop import Trainer
from fastseq.training.position import Position

X = torch.randn(47, 11, 3, generator=torch.Generator().manual_seed(1))
Y = X.mean(2, keepdim=True).cumsum(0)
SPEC = {"epochs": 3, "batchsize": 4, "seqsize": 5, "clip_norm": 0.5}  # both tails are short


class Tape(TorchDispatchMode):
    """Records operators; what they wrote to is as before afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []
        self.before = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        for declared, given in zip(func._schema.arguments, args, strict=False):
            if declared.alias_info and declared.alias_info.is_write:
                for a in tree_leaves(given):
                    storage = a.untyped_storage()
                    if storage._cdata not in self.before:
                        self.before[storage._cdata] = storage, storage.clone()
        out = func(*args, **kwargs)
        is_view = any(r.alias_info for r in func._schema.returns) and not writes
        if not is_view:
            self.calls.append((func, args, kwargs, None if writes else out))
        return out

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                again = func(*args, **kwargs)
                if out is not None:
                    for place, a in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if isinstance(place, torch.Tensor):
                            place.copy_(a)


class TapeRecorder:
    count = 0

    def __init__(self, device=None):
        del device

    def stream(self):
        return nullcontext()

    def capture(self, function):
        type(self).count += 1
        draw = torch.random.get_rng_state()
        tape = Tape()
        with tape:
            function()
        for storage, content in tape.before.values():
            storage.copy_(content)
        torch.random.set_rng_state(draw)
        return tape.replay


class TapeTrainer(GraphTrainer):
    recorder = TapeRecorder


class Sums(nn.Module):
    """Carries a sum over time; has dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 1)

    def forward(self, x, state=None):
        h = x.new_zeros(x.shape[1], 4) if state is None else state["h"]
        sums = 0.1 * self.inner(x).cumsum(0) + h
        return self.head(self.drop(sums.tanh())), {"h": sums[-1], "none": None}


def sgd(params):
    return optim.SGD(params, lr=0.05, momentum=0.9)


def estimators(monkeypatch, model, optimizer, spec=None, loss=None, amp=None):
    """Yield an estimator that trains from graphs, and the same that does not."""
    TapeRecorder.count = 0
    for trainer in (TapeTrainer, Trainer):
        monkeypatch.setattr(fs.training.fit, "Trainer", trainer)
        yield fs.Estimator(
            copy.deepcopy(model), loss or fs.seqloss(mse_loss), optimizer, spec or SPEC,
            device="cpu", comm=None, progress=False, seed=5, amp=amp,
        )  # fmt: skip


@pytest.mark.parametrize("model", [Sums(), Custom()], ids=["sums", "custom"])
@pytest.mark.parametrize("optimizer", [sgd, optim.Adagrad], ids=["recorded", "eager"])
def test_fit_as_without_graphs(monkeypatch, model, optimizer):
    w = torch.rand(47, 11, generator=torch.Generator().manual_seed(1))
    w[5:10] = 0  # a chunk in which nothing counts: the state goes on, the weights stay
    trained = []
    for est in estimators(monkeypatch, model, optimizer):
        est.fit(X, Y, w)
        est.fit(X, Y, w, epochs=1)
        trained.append(est)
    graphed, plain = trained
    # Fresh and carried, the tail in time, in sequences and in both: six shapes, a graph for each.
    assert TapeRecorder.count >= 6
    assert_same_parameters(graphed.model, plain.model, rtol=1e-5)
    for a, b in zip(graphed.history_, plain.history_, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def adamw(params):
    return optim.AdamW(params, lr=1e-2, weight_decay=0.1)  # fastseq takes the fused kernel


@pytest.mark.parametrize("optimizer", [sgd, adamw, optim.Adagrad], ids=["sgd", "fused", "eager"])
def test_accumulated_gradients(monkeypatch, optimizer):
    """The first state is trained only by the chunks that start a series: else it has no gradient."""
    model = fs.nn.Chain(fs.nn.GRU(3, 4, trainable_state=True), nn.Linear(4, 1))
    spec = {"epochs": 3, "batchsize": 4, "seqsize": 5, "accumulate": 3}
    w = torch.rand(47, 11, generator=torch.Generator().manual_seed(1))
    w[5:10] = 0
    fits = [est.fit(X, Y, w) for est in estimators(monkeypatch, model, optimizer, spec)]
    assert TapeRecorder.count >= 4
    assert_same_parameters(*(est.model for est in fits), rtol=0)
    for a, b in zip(*(est.history_ for est in fits), strict=True):
        assert a["loss"] == b["loss"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", [adamw, sgd], ids=["fused", "eager"])
def test_scaled_gradients(monkeypatch, optimizer, accumulate):
    """The first scales are far too large: replayed updates are left out, too."""

    def loss(y, target, reduction="mean"):
        return 2.0**18 * mse_loss(y, target, reduction=reduction)

    monkeypatch.setattr(fs.training.loop, "sum_of_squares", lambda grads: None)  # as on a GPU
    spec = {**SPEC, "epochs": 6, "accumulate": accumulate}
    both = estimators(monkeypatch, Sums(), optimizer, spec, fs.seqloss(loss), "fp16")
    fits = []
    for est in both:
        begin = fs.net2vec(est.model).clone()
        est.fit(X, Y, epochs=1)
        fits.append(est.fit(X, Y))
        assert not torch.equal(begin, fs.net2vec(est.model))
    assert TapeRecorder.count >= 6
    scales = [est._learner.precision.state_dict() for est in fits]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] < 2.0 ** (16 - WARM_UP)
    assert_same_parameters(*(est.model for est in fits), rtol=0)


@pytest.mark.parametrize("every_update", [False, True])
def test_another_learning_rate_is_not_ignored(every_update):
    """A schedule's numbers count at once; one that changes with each step has no recordings."""
    trained = []
    data = Sequences(X, Y, dtype=torch.float32)
    for kind in (TapeTrainer, Trainer):
        torch.manual_seed(0)
        TapeRecorder.count = 0
        model = Sums().eval()
        optimizer = sgd(model.parameters())
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

        def after_update(attention, schedule=schedule):
            if every_update:
                schedule.step()

        est = fs.Estimator(model, fs.seqloss(mse_loss), optimizer, SPEC, comm=None)
        position = Position(first=0, epochs=3, epoch=0, updates=0)
        trainer = kind(est._learner, position)
        plan = ChunkPlan(steps=47, sequences=11, batchsize=4, seqsize=5)
        with trainer, Progress(0, shown=False) as progress:
            for _ in range(3):
                position.begin_epoch()
                trainer.run(data, plan.chunks(), progress, bool, after_update)
                schedule.step()
        if kind is TapeTrainer:
            assert TapeRecorder.count == 0 if every_update else TapeRecorder.count >= 3
        trained.append(model)
    assert_same_parameters(*trained, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("optimizer", "more", "amp"),
    [("sgd", {}, None), ("sgd", {"accumulate": 3}, None), ("adamw", {"accumulate": 2}, "fp16")],
)
def test_on_two_ranks(tmp_path, optimizer, more, amp):
    """Gradients are averaged between two recordings, with the same result on all ranks."""
    script = f"""
    import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
    import torch, fastseq as fs
    from test_cuda_graph import Sums, TapeRecorder, TapeTrainer, X, Y, {optimizer}
    from torch.nn.functional import mse_loss
    trained = []
    for trainer in (TapeTrainer, fs.training.loop.Trainer):
        fs.training.fit.Trainer = trainer
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({{"net": Sums()}})["net"].eval()
        est = fs.Estimator(
            model, fs.seqloss(mse_loss), {optimizer}, {SPEC | more}, device="cpu",
            amp={amp!r}, progress=False, seed=1,
        )
        w = torch.ones(47, 11)
        w[5:10, 4:] = 0  # steps in which the second rank has nothing
        est.fit(X, Y, w)
        trained.append(fs.net2vec(est.model).clone())
    assert TapeRecorder.count >= 3
    atol = {1e-3 if amp else 1e-6}
    torch.testing.assert_close(*trained, rtol=1e-5, atol=atol)
    print("equal", trained[0].double().sum().item())
    """
    done = mpirun(tmp_path, 2, script)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("equal")]
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_values_cannot_be_read(monkeypatch):
    def loss(m, xs, ys):
        value = mse_loss(m(xs), ys)
        return value if float(value.detach()) > 0 else 2 * value

    graphed, _ = estimators(monkeypatch, Sums(), sgd, loss=loss)
    monkeypatch.setattr(fs.training.fit, "Trainer", TapeTrainer)
    with pytest.raises(ValueError, match=r"compile=True needs .* CUDA graph .* not permitted"):
        graphed.fit(X, Y)


def test_calls_before_the_recording_are_calls_like_others():
    total = torch.zeros(2)
    ran = 0

    def add(inputs):
        nonlocal ran
        ran += 1
        total.add_(inputs["a"])
        return total * 2

    graphs = Graphs(torch.device("cpu"), TapeRecorder())
    for call in range(1, WARM_UP + 4):
        twice = graphs("add", add, {"a": torch.ones(2), "none": None})
        assert total.tolist() == [call, call]
        assert twice.tolist() == [2 * call, 2 * call]
    assert ran == WARM_UP + 1
    graphs("add", add, {"a": torch.ones(1), "none": None})  # another shape
    assert ran == WARM_UP + 2
    graphs.clear()
    graphs("add", add, {"a": torch.ones(2), "none": None})
    assert ran == WARM_UP + 3


def test_which_optimizers_are_recorded():
    def params():
        return [nn.Parameter(torch.zeros(2))]

    assert can_record(optim.AdamW(params()))
    assert can_record(optim.RMSprop(params()))
    assert can_record(optim.SGD(params(), momentum=0.9))
    assert not can_record(optim.SGD(params(), lr=torch.tensor(0.1)))
    assert not can_record(optim.Adagrad(params()))  # counts its steps on the host
    hooked = optim.Adam(params())
    hooked.register_step_post_hook(lambda *_: None)  # would not run on replay
    assert not can_record(hooked)

    class Own(optim.Adam):
        pass

    assert not can_record(Own(params()))


def test_optimizers_are_made_capturable():
    p = nn.Parameter(torch.zeros(2))
    optimizer = optim.Adam([p], lr=0.1)
    p.grad = torch.ones(2)
    optimizer.step()
    undo = make_capturable(optimizer)
    assert optimizer.param_groups[0]["capturable"] is True
    assert optimizer.state[p]["step"].item() == 1
    q = nn.Parameter(p.detach().clone())
    on_cpu = optim.Adam([q], lr=0.1)
    on_cpu.load_state_dict(
        copy.deepcopy(optimizer.state_dict())
    )  # as a run that is resumed without graphs
    p.grad = q.grad = torch.full((2,), 3.0)
    on_cpu.step()
    undo()
    assert optimizer.param_groups[0]["capturable"] is False
    optimizer.step()
    assert torch.equal(p, q)
    assert optimizer.state_dict()["param_groups"] == on_cpu.state_dict()["param_groups"]


def test_chunks_in_which_sequences_end_run_as_they_are(monkeypatch):
    lengths = [47, 12, 30, 1, 47, 46, 9, 20, 33, 5, 2]
    # The two norms round otherwise. PyTorch's layers pack sequences, by lengths on the host.
    model = fs.nn.Chain(fs.nn.LSTM(3, 4, proj_size=2), nn.Linear(2, 1)).double()
    both = estimators(monkeypatch, model, sgd)
    fits = [est.fit(X.double(), Y.double(), lengths=lengths, epochs=4) for est in both]
    assert_same_parameters(*(est.model for est in fits), rtol=1e-13)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_chunks_in_which_sequences_end_are_recorded(monkeypatch, accumulate):
    """If layers do not look at lengths on the host, as on a GPU."""
    monkeypatch.setattr(recurrent_arguments, "known_on_host", lambda lengths: None)
    lengths = [47, 12, 30, 1, 47, 46, 9, 20, 33, 5, 2]
    model = fs.nn.Chain(fs.nn.GRU(3, 4), nn.Linear(4, 1)).double()
    spec = {**SPEC, "epochs": 8, "accumulate": accumulate}
    ran = []

    def loss(y, target, reduction="mean"):
        ran.append(len(y))
        return mse_loss(y, target, reduction=reduction)

    fits, calls = [], []
    for est in estimators(monkeypatch, model, sgd, spec, fs.seqloss(loss)):
        fits.append(est.fit(X.double(), Y.double(), lengths=lengths))
        calls.append(len(ran) - sum(calls))
    assert calls[0] < calls[1] / 2
    assert_same_parameters(*(est.model for est in fits), rtol=1e-12)


class AsksForLengths(nn.Module):
    """May do anything with them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 1)

    def forward(self, x, lengths=None):
        return self.inner(x) * (1 if lengths is None else float(lengths.sum()))


def test_lengths_that_may_be_read_are_not_recorded(monkeypatch):
    lengths = [47, 12, 30, 1, 47, 46, 9, 20, 33, 5, 2]
    for accumulate in (1, 3):
        spec = {**SPEC, "accumulate": accumulate}
        both = estimators(monkeypatch, fs.nn.Chain(AsksForLengths()).double(), sgd, spec)
        fits = [est.fit(X.double(), Y.double(), lengths=lengths) for est in both]
        assert_same_parameters(*(est.model for est in fits), rtol=1e-12)


def test_optimizers_are_as_before_after_a_run_that_fails(monkeypatch, tmp_path):
    """And checkpoints resume without graphs, on a CPU, as if there had been none."""

    class Fail(fs.callbacks.Callback):
        def on_batch_end(self, run):
            assert run.optimizer.param_groups[0]["capturable"] == graphs
            if run.position.updates == 25:
                raise InterruptedError

    graphs = True
    graphed, plain = estimators(monkeypatch, Sums().eval(), adamw)
    resumed = copy.deepcopy(plain.model)
    graphed.callbacks = [Fail()]
    monkeypatch.setattr(fs.training.fit, "Trainer", TapeTrainer)
    monkeypatch.setattr(Trainer, "_end", failing(Trainer._end))
    with pytest.raises(InterruptedError):
        graphed.fit(X, Y, checkpoint=fs.callbacks.Checkpoint(tmp_path, every_updates=7))
    assert graphed.optimizer.param_groups[0]["capturable"] is False
    monkeypatch.undo()
    plain.fit(X, Y)
    est = fs.Estimator(
        resumed, fs.seqloss(mse_loss), adamw, SPEC, device="cpu", comm=None, progress=False, seed=5
    ).fit(X, Y, resume=tmp_path)
    assert est.optimizer.param_groups[0]["capturable"] is False
    assert_same_parameters(est.model, plain.model, rtol=1e-5)


def failing(end):
    def fails(trainer, *, failed):
        end(trainer, failed=failed)
        if failed:
            raise InterruptedError("a rank is gone")

    return fails


def test_layers_unfrozen_and_replaced_are_recorded_anew(monkeypatch):
    head = nn.Linear(4, 1)

    class Change(fs.callbacks.Callback):
        def on_epoch_begin(self, run):
            run.model.inner.requires_grad_(run.epoch > 1)
            if run.epoch == 3:
                run.model.head = copy.deepcopy(head)

    trained = []
    for est in estimators(monkeypatch, Sums().eval(), sgd):
        est.callbacks = [Change()]
        trained.append(est.fit(X, Y, epochs=4).model)
    assert TapeRecorder.count >= 6
    assert_same_parameters(*trained, rtol=1e-5)
