"""How the house is built: which rooms there are, and what each may import or include."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Which layers of csrc each layer may include.
ALLOWED = {
    "core": {"core"},
    "cuda": {"core", "cuda"},
    "mpi": {"core", "mpi"},
    "torch": {"core", "cuda", "torch"},
    "python": {"core", "cuda", "mpi", "python"},
}
NATIVE = sorted((ROOT / "csrc").rglob("*.[hc]*"))
PYTHON = sorted((ROOT / "python").rglob("*.py"))


def includes(path: Path) -> list[str]:
    return re.findall(r'#include\s+["<]([^">]+)[">]', path.read_text())


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: str(p.relative_to(ROOT)))
def test_includes_point_up(path: Path) -> None:
    if path.suffix not in {".h", ".cpp", ".cu"}:
        return
    layer = path.relative_to(ROOT / "csrc").parts[0]
    for name in includes(path):
        if (ROOT / "csrc" / name).exists():
            assert name.split("/")[0] in ALLOWED[layer], f"{path} includes {name}"


MORE_ROOMS = {"step": {"ranks", "recurrence"}}


def test_rooms_of_the_core_know_the_base_alone() -> None:
    core = ROOT / "csrc" / "core"
    for path in NATIVE:
        if core in path.parents and path.suffix != ".txt":
            own = path.relative_to(core).parts[0]
            rooms = {name.split("/")[1] for name in includes(path) if name.startswith("core/")}
            assert rooms <= {"base", own, *MORE_ROOMS.get(own, ())}, path


@pytest.mark.parametrize(
    ("layer", "forbidden"),
    [
        ("core", r"torch/|mpi\.h|cuda|Python\.h|pybind11"),
        ("cuda", r"torch/csrc|mpi\.h|Python\.h|pybind11"),
        ("mpi", r"torch/|cuda|Python\.h|pybind11"),
        ("torch", r"mpi\.h|pybind11|ATen|torch/extension"),
        ("python", r"torch/"),
    ],
)
def test_layers_do_not_know_each_others_libraries(layer: str, forbidden: str) -> None:
    for path in NATIVE:
        if path.relative_to(ROOT / "csrc").parts[0] == layer and path.suffix != ".txt":
            found = [
                i
                for i in includes(path)
                if re.match(forbidden, i) and not i.startswith(f"{layer}/")
            ]
            assert not found, f"{path} includes {found}"


PACKAGE = ROOT / "python" / "fastseq"
# The rooms of the package (folders, and five files that are rooms alone): each imports only those
# before it, types included.
ROOMS = (
    "errors", "_util", "distributed", "nn", "data", "training", "inference", "checkpoint",
    "callbacks", "estimator", "search_space", "sklearn", "sktime",
    "huggingface", "info", "doctor", "serving",
)  # fmt: skip
EXTENSIONS = ("_C", "_comm", "_cuda", "_cuda_comm", "_mpi", "_reader", "_step")


def name_of(path: Path) -> str:
    """Return a module's name below the package, empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PYTHON}


@functools.cache
def imported(module: str) -> frozenset[str]:
    """Return the modules of the package that one imports, anywhere in it."""
    path = MODULES[module]
    package = module.split(".") if module else []
    package = package if path.name == "__init__.py" else package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            for alias in node.names:
                whole = ".".join(filter(None, [*base, alias.name]))
                known = whole in MODULES or whole in EXTENSIONS
                found.add(whole if known else ".".join(filter(None, base)))
    return frozenset(found - {module})


def test_rooms_are_those_in_the_list() -> None:
    names = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert names - {"__pycache__", "__init__", "__main__"} == set(ROOMS)
    assert sum((PACKAGE / room).is_dir() for room in ROOMS) <= 10


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ("", "__main__")])
def test_a_room_imports_only_rooms_before_it(module: str) -> None:
    own = ROOMS.index(module.split(".")[0])
    for name in imported(module) - set(EXTENSIONS):
        assert name, f"{module} imports from the package itself"
        assert ROOMS.index(name.split(".")[0]) <= own, f"{module} imports {name}"


def test_the_map_is_that_of_the_code() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tables = text[text.index("## The map") : text.index("### Follow `x`")]
    rows = re.findall(r"^\| `([^`]+)` \|", tables, re.M)
    assert rows == [*(f"csrc/{layer}" for layer in ALLOWED), *ROOMS]
    steps = text[text.index("### Follow `x`") : text.index("### Design")]
    named = re.findall(r"`([\w/]+\.(?:py|h|cpp))`", steps)
    steps = re.sub(r"`[\w/]+\.(?:py|h|cpp)`", "", steps)
    known = [PACKAGE, ROOT, ROOT / "csrc" / "core"]
    assert not [name for name in named if not any((base / name).exists() for base in known)]
    code = "\n".join(path.read_text() for path in (*PYTHON, *NATIVE) if path.is_file())
    functions = re.findall(r"`(?:\w+(?:\.|::))*(\w+)`", steps)
    assert not [name for name in functions if not re.search(rf"\b{name}\b", code)]


def test_there_is_no_circle_of_imports() -> None:
    graph = {module: imported(module) & set(MODULES) for module in MODULES}
    graph = {module: names - {""} for module, names in graph.items()}
    assert list(TopologicalSorter(graph).static_order())  # raises where there is one


def test_no_two_modules_have_the_same_name() -> None:
    stems = Counter(path.stem for path in PYTHON if path.stem != "__init__")
    assert not {stem for stem, count in stems.items() if count > 1}


def test_few_python_modules_touch_each_native_one() -> None:
    users = {
        name: {module for module in MODULES if name in imported(module)} for name in EXTENSIONS
    }
    assert users == {
        "_C": {"nn.ops.library"}, "_cuda": {"nn.ops.library"}, "_reader": {
            "data.native_reader", "data.hdf5.chunk_filters", "data.hdf5.chunk_writing",
        },
        "_comm": {"distributed.communicators", "distributed.rendezvous"},
        "_mpi": {"distributed.communicators"},
        "_cuda_comm": {"distributed.native_bucketizers"}, "_step": {"training.native_layers"},
    }  # fmt: skip


@functools.cache
def defined(path: Path) -> frozenset[str]:
    """Return the attributes that a module sets, and the functions, classes, fields it defines."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(attr=name, ctx=ast.Store()):
                names.add(name)
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return frozenset(names)


def private_names(path: Path) -> Iterator[str]:
    """Yield private attributes that a module takes of something that is not its own.

    Its own are those that it sets or defines itself; and those of ``self`` and ``cls``, if the
    package defines them (a base class does), not a base class of torch.
    """
    package = frozenset().union(*map(defined, PYTHON))
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr):
            continue
        own = package if ast.unparse(node.value) in ("self", "cls") else defined(path)
        if node.attr not in own | OF_PYTHON and not ast.unparse(node).startswith(("os._", "sys._")):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} {ast.unparse(node)}"


# Named tuples have these; memory maps of NumPy, scorers of scikit-learn and forecasters of sktime
# have no public name for the same.
OF_PYTHON = {"_fields", "_get_varnames", "_make", "_mmap", "_replace", "_score_func"}


def test_no_module_takes_private_attributes_of_another() -> None:
    assert not [
        name for path in PYTHON if path.stem != "torch_internals" for name in private_names(path)
    ]


PUBLIC = {
    "", "callbacks", "distributed", "huggingface", "info", "nn", "serving", "sklearn", "sktime",
}  # fmt: skip
# Tests and benches that use other modules than the public ones, and why: no public name does it.
INNER = {
    "reads chunks, or compares data, without training on them": (
        "bench/bench_reading.py", "tests/python/test_callbacks_other_data.py",
        "tests/python/test_chunks.py", "tests/python/test_drawn_members.py",
        "tests/python/test_large_sets.py", "tests/python/test_laziness.py",
        "tests/python/test_mapped.py", "tests/python/test_reading.py",
        "tests/python/test_sequences.py", "tests/python/test_sources.py",
        "tests/python/test_stored_chunks.py",
        "tests/python/test_unequal_lengths.py", "tests/python/test_validation.py",
        "tests/python/test_watching.py", "tests/python/test_wide_numbers.py",
    ),
    "calls a native module or an operator by itself": (
        "bench/bench_gpu.py", "bench/bench_pack.py", "tests/python/cells.py",
        "tests/python/reads.py", "tests/python/test_cuda.py",
        "tests/python/test_ops.py", "tests/python/test_random_kernels.py",
        "tests/python/test_reader_stops.py", "tests/python/test_slab_reader.py",
    ),
    "asks how HDF5 files are read: which class, which of the file's bytes, what is refused": (
        "tests/python/test_chunk_writing.py", "tests/python/test_h5_compression.py",
        "tests/python/test_h5_concat.py", "tests/python/test_h5_fuzz.py",
        "tests/python/test_h5_julia.py", "tests/python/test_h5_lazy.py",
        "tests/python/test_h5_links.py", "tests/python/test_h5_mmap.py",
        "tests/python/test_h5_storage.py", "tests/python/test_h5_store.py",
        "tests/python/test_h5_windows.py", "tests/python/test_stored_chunks.py",
    ),
    "reads tables with less room than there is": (
        "tests/python/test_long_tables.py", "tests/python/test_long_tables_refused.py",
    ),
    "asks what fastseq finds out about a model, or which kernel a layer takes": (
        "tests/python/test_averaged.py", "tests/python/test_description.py",
        "tests/python/test_gpu_rules.py", "tests/python/test_looking.py",
        "tests/python/test_native_forecasting.py", "tests/python/test_recurrent_arguments.py",
        "tests/python/test_recurrent_layers.py", "tests/python/test_stateful.py",
    ),
    "reads, writes or damages the files of checkpoints": (
        "tests/python/test_checkpoint.py", "tests/python/test_checkpoint_contents.py",
        "tests/campaigns/faulted_programs.py",
        "tests/python/test_checkpoint_files.py", "tests/python/test_saving_files.py",
        "tests/python/test_forged_files.py", "tests/campaigns/fuzz_models.py",
    ),
    "compares statistics and windows with NumPy's": (
        "tests/mpi/test_scaling.py", "tests/python/test_forecaster_calendar.py",
        "tests/python/test_forecaster_covariates.py",
        "tests/python/test_forecaster_times.py",
        "tests/python/test_forecaster_values.py", "tests/python/test_forecaster_windows.py",
        "tests/python/test_scaling.py", "tests/python/test_segment_rnn.py",
    ),
    "replaces a part of fastseq, or watches what threads and processes do in one": (
        "tests/campaigns/endurance.py",
        "tests/mpi/test_changing_models.py", "tests/mpi/test_communicator.py",
        "tests/mpi/gpu_on_host.py", "tests/mpi/test_gradients_on_devices.py",
        "tests/mpi/test_predict_out.py", "tests/python/forked_ranks.py",
        "tests/python/test_cuda_graph.py",
        "tests/python/test_history_and_progress.py", "tests/python/test_host_reads.py",
        "tests/python/test_checkpoint_signals.py", "tests/python/test_launchers.py",
        "tests/python/test_thread_starts.py", "tests/python/test_threads.py",
    ),
    "kills processes while they write files, and starts them again": (
        "tests/campaigns/kills.py", "tests/campaigns/two_jobs.py", "tests/python/killing.py",
        "tests/python/test_file_locks.py",
    ),
    "chooses what runs updates, steps or predictions": (
        "tests/python/test_native_changes.py", "tests/python/test_native_forward.py",
        "tests/python/test_precision.py",
        "tests/python/test_native_pooling.py", "tests/python/test_native_step.py",
        "tests/python/test_native_time_steps.py", "tests/python/updates.py",
    ),
    "trains with `Estimator` what the scikit-learn estimators train with": (
        "bench/fit_classifier.py", "bench/fit_tasks.py",
    ),
    "runs the command line in this process": (
        "tests/python/test_doctor.py", "tests/python/test_forecast_commands.py",
        "tests/python/test_forged_files.py",
        "tests/python/test_h5_commands.py", "tests/python/test_server_process.py",
        "tests/campaigns/fuzz_files.py",
    ),
}  # fmt: skip


def used_names(path: Path) -> Iterator[str]:
    """Yield the dotted names of fastseq that a file imports, or takes from ``fs``."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.Attribute():
                yield re.sub(r"^fs\.", "fastseq.", ast.unparse(node))


def used_modules(path: Path) -> set[str]:
    """Return the modules of the package in which a file looks."""
    found = set()
    for name in used_names(path):
        first, *parts = name.split(".")
        if first == "fastseq":
            prefixes = [".".join(parts[:n]) for n in range(len(parts) + 1)]
            found.add(max(p for p in prefixes if p in MODULES or p in EXTENSIONS))
    return found


def test_tests_and_benches_use_public_names_or_say_why_not() -> None:
    files = [p for room in ("tests", "bench", "examples") for p in (ROOT / room).rglob("*.py")]
    inner = {str(path.relative_to(ROOT)) for path in files if used_modules(path) - PUBLIC}
    assert inner == {name for names in INNER.values() for name in names}


def lines_of_code(path: Path) -> int:
    """Count the lines of a file that are neither blank nor comments nor docstrings."""
    text = path.read_text()
    lines = text.splitlines()
    if path.suffix != ".py":
        return sum(not re.match(r"\s*(//|$)", line) for line in lines)
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docs |= set(range(node.lineno - 1, node.end_lineno or 0))
    return sum(not re.match(r"\s*(#|$)", line) for i, line in enumerate(lines) if i not in docs)


def test_files_have_one_subject_and_stay_short() -> None:
    tracked = [*NATIVE, *PYTHON, *(ROOT / "tests").rglob("*.py"), *(ROOT / "tests").rglob("*.cpp")]
    assert not {str(p): n for p in tracked if p.is_file() and (n := lines_of_code(p)) > 500}


def test_functions_stay_short() -> None:
    """At most 60 lines, without signature (it may have many parameters) and docstring."""
    found = {}
    for path in PYTHON:
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            begin = node.body[0].lineno - 1
            if ast.get_docstring(node) is not None:
                begin = node.body[0].end_lineno or begin
            body = [line for line in lines[begin : node.end_lineno] if line.strip()]
            found[f"{path.name}: {node.name}"] = len(body)
    assert not {name: count for name, count in found.items() if count > 60}


def test_few_lines_are_hidden_from_the_type_checker() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in [*PYTHON, *PACKAGE.rglob("*.pyi")]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "type: ignore" in line
    ]
    assert len(found) <= 20, found
