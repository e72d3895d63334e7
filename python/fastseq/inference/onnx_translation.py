"""fastseq's operators as those of ONNX, for programs of `torch.export`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from .._util.optional_imports import need
from ..nn.ops.library import native

__all__ = ["onnx_program"]


def onnx_program(program: ExportedProgram, names: Sequence[str], made: Sequence[str]) -> Any:
    """Return a program in ONNX, for any number of steps and sequences.

    Parameters
    ----------
    program
        What `torch.export` returned.
    names, made
        Names of its inputs and outputs.

    Raises
    ------
    MissingFeatureError
        onnxscript is not installed.
    ValueError
        ONNX has no such operator; or the model is not in single precision, for which onnxruntime
        has no recurrent layers.
    """
    need("onnxscript", "an export to ONNX")
    for name, weight in program.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            raise ValueError(
                f"an export to ONNX needs a model in single precision, but {name} is "
                f"{weight.dtype}: onnxruntime has no recurrent layers for it"
            )
    # it warns of each operator of torchvision's if that is not installed
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's of its own parts
            found = torch.onnx.export(
                program, dynamo=True, verbose=False, custom_translation_table=_table(),
                input_names=names, output_names=made,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        text = " ".join(str(reason).split())
        raise ValueError(f"the model cannot be exported to ONNX: torch says: {text}") from error
    assert found is not None
    _name_dimensions(found.model.graph)
    return found


def _name_dimensions(graph: Any) -> None:
    """Call the dimensions of the inputs time and batch."""
    steps, count = graph.inputs[0].shape[:2]
    names = {str(steps): "time", str(count): "batch"}
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        for place, size in enumerate(value.shape or ()):
            if str(size) in names:
                value.shape[place] = names[str(size)]


def _table() -> dict[Any, Callable[..., Any]]:
    """Return the translations; ONNX has other orders of gates than PyTorch."""
    from onnxscript import opset18

    op: Any = opset18  # its types know no lists of integers

    def joined(weights: Any, order: Sequence[int]) -> Any:
        size = weights.shape[0] // len(order)
        if len(order) > 1:
            parts = [op.Slice(weights, [g * size], [(g + 1) * size], [0]) for g in order]
            weights = op.Concat(*parts, axis=0)
        return op.Unsqueeze(weights, [0])

    def biases(b_ih: Any, b_hh: Any, order: Sequence[int]) -> Any:
        if b_ih is None:
            return None
        return op.Concat(joined(b_ih, order), joined(b_hh, order), axis=1)

    def run(
        kind: Any, order: Sequence[int], given: Sequence[Any], h0: Any, lengths: Any, reverse: bool,
        **more: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        if lengths is not None:
            raise ValueError("sequences of different lengths are not translated")
        x, w_ih, w_hh, b_ih, b_hh = given
        weights = (joined(w_ih, order), joined(w_hh, order), biases(b_ih, b_hh, order))
        y, *ends = kind(
            x, *weights, None, *h0, direction="reverse" if reverse else "forward",
            hidden_size=w_hh.shape[1], **more,
        )  # fmt: skip
        return op.Squeeze(y, [1]), *ends

    def lstm(
        x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h0: Any, c0: Any,
        lengths: Any = None, reverse: bool = False, save: bool = False,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        given = x, w_ih, w_hh, b_ih, b_hh
        y, h, c = run(op.LSTM, (0, 3, 1, 2), given, (h0, c0), lengths, reverse)
        return y, h, c, op.Identity(h)  # the last is what backward needs: not used

    def gru(
        x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h0: Any,
        lengths: Any = None, reverse: bool = False, save: bool = False,  # noqa: ARG001
    ) -> Any:  # fmt: skip
        given = x, w_ih, w_hh, b_ih, b_hh
        y, h = run(op.GRU, (1, 0, 2), given, (h0,), lengths, reverse, linear_before_reset=1)
        return y, h, op.Identity(h)

    def rnn(
        x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, h0: Any,
        lengths: Any = None, reverse: bool = False, relu: bool = False,
    ) -> Any:  # fmt: skip
        given = x, w_ih, w_hh, b_ih, b_hh
        names = ["Relu" if relu else "Tanh"]
        y, h = run(op.RNN, (0,), given, (h0,), lengths, reverse, activations=names)
        return y, h

    return {native.lstm.default: lstm, native.gru.default: gru, native.rnn.default: rnn}
