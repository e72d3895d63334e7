"""Jobs of two ranks that are told to save, killed, and started once more."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs import START, mpirun

CASE = "states of its own kind"


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """mpirun hands SIGUSR1 on to all ranks; after signal 9 to one, it ends the others."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    script = f"""
        |import os, signal, time
        |from interrupted import CASES, assert_same, files, result, run
        |case, folder = {CASE!r}, "saved"
        |settings = fs.callbacks.Checkpoint(folder, every_epochs=None)
        |class Ends(fs.callbacks.Callback):
        |    def on_batch_end(self, run):
        |        if run.updates == 5 and run.first:
        |            os.kill(os.getppid(), signal.SIGUSR1)
        |        if run.rank == 1 and any(name.startswith("checkpoint-") for name in files(folder)):
        |            os.kill(os.getpid(), signal.SIGKILL)
        |        time.sleep(0.05 if run.updates < 60 else 3)  # the signal takes long on a busy machine
        |def interrupted():
        |    *rest, callbacks, more = CASES[case]
        |    CASES[case] = (*rest, lambda: [*callbacks(), Ends()], more)
        |    run(case, checkpoint=settings, comm="auto")
        |def resumed():
        |    whole = result(run(case, comm="auto"))
        |    first = []
        |    class Tell(fs.callbacks.Callback):
        |        def on_batch_end(self, run):
        |            first.append(run.updates)
        |    *rest, callbacks, more = CASES[case]
        |    CASES[case] = (*rest, lambda: [*callbacks(), Tell()], more)
        |    assert_same(whole, result(run(case, checkpoint=settings, resume="auto", comm="auto")))
        |    assert first[0] > 5
        |    print("resumed", flush=True)
    """
    done = mpirun(tmp_path, 2, START + script + "    |interrupted()\n")
    assert done.returncode != 0, done.stdout
    assert list((tmp_path / "saved").iterdir()), done.stderr
    done = mpirun(tmp_path, 2, START + script + "    |resumed()\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resumed") == 2
