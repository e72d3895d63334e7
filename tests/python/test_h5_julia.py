"""Literals that Julia prints."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastseq.data.hdf5.julia import parse_julia

CASES = [
    ("1", 1), ("-17", -17), ("1_000", 1000), ("0x0a", 10), ("1.5", 1.5), ("1.", 1.0), ("1e3", 1e3),
    ("1.0f-3", 1e-3), ("-Inf32", -np.inf), ("true", True), ("false", False), ("nothing", None),
    ("missing", None), (":sym", "sym"), ('Symbol("a b")', "a b"), ("'a'", "a"), (r"'\n'", "\n"),
    ('"te"xt"', 'te"xt'), ('""', ""), ("  2 ", 2),
    (r'("a\"b\n\u00e4\$",)', ('a"b\nä$',)),
    ("(1, 2)", (1, 2)), ("(1,)", (1,)), ("()", ()), ("(a = 1, b = (2, :c))", {"a": 1, "b": (2, "c")}),
    ("Dict()", {}), ("Dict{String, Any}()", {}), ('Dict(:a => 1, "b" => [])', {"a": 1, "b": []}),
    ("Dict{Symbol, Dict{Int, Bool}}(:a => Dict(1 => true))", {"a": {1: True}}),
    ("Base.Dict(1 => 2)", {1: 2}),
    ('["a", "b"]', ["a", "b"]), ('Any[1, "a", nothing]', [1, "a", None]), ("[(1, 2), (3,)]", [(1, 2), (3,)]),
    ("[[:a], [:b, :c]]", [["a"], ["b", "c"]]),
]  # fmt: skip
ARRAYS = [
    ("[1, 2]", np.array([1, 2])), ("[1.0, NaN, Inf]", np.array([1, np.nan, np.inf])),
    ("Float32[1.0, 2.5]", np.array([1, 2.5], "f4")), ("Bool[1, 0]", np.array([True, False])),
    ("[true, false]", np.array([True, False])), ("Int64[]", np.array([], "i8")),
    ("UInt8[0x01, 0xff]", np.array([1, 255], "u1")), ("[1 2; 3 4]", np.array([[1, 2], [3, 4]])),
    ("Float32[1.0 2.0 -3.0]", np.array([[1, 2, -3]], "f4")),
    ("1:4", np.arange(1, 5)), ("1:2:6", np.array([1, 3, 5])), ("3:-1:1", np.array([3, 2, 1])),
    ("5:4", np.array([], int)),
]  # fmt: skip
REFUSED = [
    "", "x", "run(`ls`)", "f(x)", "1 + 2", "1//2", "1 + 2im", "2020-01-01T00:00:00", "a = 1",
    "1.5.2", "(1", "[1, 2", "Dict(1 => 2", "Dict(1)", "Dict([1] => 2)", "[1, 2] [3]", "[1 2; 3]",
    "1:99999999999", "1.5:3", "1:0:3", '["$(x)"]', "Set([1])", "Array{Float32,1}[[1.0]]",
    "@eval 1", "begin 1 end", "x -> x", '__import__("os")', "[" * 5000, "UInt8[300]", 'Symbol(1)',
    "Dict{", "1\n2", r'("\Uffffffff",)', "true1", "(a = 1, 2)",
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), CASES)
def test_values(text, value):
    found = parse_julia(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "value"), ARRAYS)
def test_arrays(text, value):
    np.testing.assert_array_equal(parse_julia(text), value, strict=True)


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="is not a Julia literal"):
        parse_julia(text)


TOKENS = [
    "1",
    "2.5",
    "-3",
    ",",
    ";",
    ":",
    "=>",
    "=",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "Dict",
    "Float32",
    "Any",
    "true",
    "nothing",
    ":a",
    '"b"',
    "'c'",
    "Inf",
    "0x1f",
    "x",
    ".",
    "$",
    "`",
]


@given(st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join) | st.text(max_size=20))
def test_no_text_does_anything_but_parse_or_raise(text):
    with contextlib.suppress(ValueError):
        parse_julia(text)
