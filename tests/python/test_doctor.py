"""What `fastseq doctor` finds and advises."""

from __future__ import annotations

import importlib.util
import os
import shutil

import pytest
import torch

from fastseq.__main__ import main


@pytest.fixture
def told(capsys, monkeypatch):
    """Return a function that runs the doctor: {topic: (found, advice)}."""
    for name in list(os.environ):
        if name.startswith(("OMPI_", "PMI", "SLURM_", "TORCHELASTIC", "FASTSEQ_")):
            monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def run():
        assert main(["doctor"]) == 0
        found: dict[str, tuple[str, str]] = {}
        topic = ""
        for line in capsys.readouterr().out.splitlines():
            if line == "nothing to do":
                assert not any(advice for _, advice in found.values())
            elif line[2] != " ":
                topic, text = line[2:15].strip(), line[17:]
                found[topic] = (text, "")
            else:
                found[topic] = (found[topic][0], line.strip())
        return found

    return run


def test_a_healthy_machine_needs_no_advice(told, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(torch.get_num_threads()))
    found = told()
    assert found["launcher"] == ("none: a single process", "")
    assert found["threads"][1] == found["processor"][1] == ""
    assert found["packages"] == ("sklearn, pandas, matplotlib", "")
    assert found["GPUs"][0] == "none that PyTorch sees" or torch.cuda.is_available()


def test_too_many_threads_and_ranks(told, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert told()["threads"] == ("8, on 8 cores", "")
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "4")
    assert told()["threads"] == (
        "8 in each of 4 processes, on 8 cores", "they wait for each other: set OMP_NUM_THREADS=2",
    )  # fmt: skip
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "16")
    assert told()["threads"][1] == "they wait for each other: start at most 8 ranks on this machine"


def test_launcher_variables_that_do_not_fit(told, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "2")
    text, advice = told()["launcher"]
    assert text == "its variables do not fit"
    assert "RANK" in advice


def test_little_shared_memory(told, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=64 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    text, advice = told()["shared memory"]
    assert text.startswith("64 MiB free")
    assert "--shm-size" in advice


def test_limited_kernels_and_missing_packages(told, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("FASTSEQ_ISA", "baseline")
    found = told()
    assert "unset it" in found["processor"][1]
    assert found["packages"] == ("no matplotlib", "for plots: pip install matplotlib")
    assert found["compilers"][0] == "none"


@pytest.mark.parametrize("command", ["fit", "predict", "serve", "info", "doctor", "h5"])
def test_commands_say_what_they_do_and_whose_argument_is_wrong(capsys, command):
    assert main([]) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if f"    {command} " in line]
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split()).lower()
    assert told.split(maxsplit=1)[1].strip().lower() in text
    words = {"fit": ["a", "b"], "predict": ["a"], "serve": ["a"], "h5": ["info", "a"]}
    with pytest.raises(SystemExit, match="2"):
        main([command, *words.get(command, []), "--odd"])
    assert f"fastseq {command}: error: unrecognized arguments: --odd" in capsys.readouterr().err


def test_a_port_is_a_number(capsys):
    for port in ("abc", "-1", "65536"):
        with pytest.raises(SystemExit, match="2"):
            main(["serve", "model", f"--port={port}"])
        message = f"--port: must be a number from 0 to 65535, got {port!r}"
        assert message in capsys.readouterr().err
