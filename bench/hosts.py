"""Two hosts on one machine: network namespaces joined by a shaped pair of virtual interfaces.

Each "host" has its own network and host name, and nothing but a link of `RATE` to the other,
so that MPI takes them for two machines. Needs root, ``ip``, ``tc`` and ``unshare``.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

RATE = "1gbit"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NETWORK = "10.77.0.0/24"
NAMES = ("fastseq-h1", "fastseq-h2")

# Open MPI starts its daemon on the other host by this, in place of ssh: "SCRIPT address command".
AGENT = """#!/bin/sh
case "$1" in *{second}) host={name} ;; *) host={first_name} ;; esac
shift
exec ip netns exec "$host" unshare -u sh -c "hostname $host; $*"
"""


def possible() -> str | None:
    """Return why hosts cannot be made here; None if they can."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "tc", "unshare", "mpirun") if shutil.which(tool) is None]
    return f"needs {', '.join(missing)}" if missing else None


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Make the hosts, and take them away again."""
    remove()
    try:
        for name in NAMES:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", "fsq1", "type", "veth", "peer", "name", "fsq2")
        for name, link, address in zip(NAMES, ("fsq1", "fsq2"), ADDRESSES, strict=True):
            _run("ip", "link", "set", link, "netns", name)
            inside = ("ip", "netns", "exec", name)
            _run(*inside, "ip", "addr", "add", f"{address}/24", "dev", link)
            _run(*inside, "ip", "link", "set", link, "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            shape = ("root", "tbf", "rate", RATE, "burst", "1mb", "latency", "50ms")
            _run(*inside, "tc", "qdisc", "add", "dev", link, *shape)
        yield
    finally:
        remove()


def remove() -> None:
    """Take away what is there of the hosts."""
    for name in NAMES:
        _run("ip", "netns", "del", name, check=False)


def mpirun(
    command: Sequence[str], ranks_per_host: int = 2, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `command` on both hosts, and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        agent = Path(folder) / "agent"
        agent.write_text(AGENT.format(second=ADDRESSES[1], name=NAMES[1], first_name=NAMES[0]))
        agent.chmod(agent.stat().st_mode | stat.S_IEXEC)
        launcher = [
            "mpirun", "--host", ",".join(f"{a}:{ranks_per_host}" for a in ADDRESSES),
            "-np", str(2 * ranks_per_host), "--prtemca", "plm_ssh_agent", str(agent),
            "--mca", "pml", "ob1", "--mca", "btl", "tcp,self,sm",
            "--mca", "btl_tcp_if_include", NETWORK, "--prtemca", "prte_if_include", NETWORK,
            "--bind-to", "none", *options, *command,
        ]  # fmt: skip
        as_root = {
            f"{kind}_ALLOW_RUN_AS_ROOT{end}": "1"
            for kind in ("OMPI", "PRTE")
            for end in ("", "_CONFIRM")
        }
        return subprocess.run(
            [shutil.which("ip") or "ip", "netns", "exec", NAMES[0], "unshare", "-u", "sh", "-c",
             f'hostname {NAMES[0]}; exec "$@"', "sh", *launcher],
            env={**os.environ, **as_root}, text=True, check=False,
            stdout=subprocess.PIPE, stderr=sys.stderr,
        )  # fmt: skip
