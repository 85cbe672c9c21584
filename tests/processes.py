"""Processes of a run: which are still there, and a port for a new one."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from repository import TESTS


def alive_in_group(group: int) -> list[int]:
    """The processes of a group that are more than zombies waiting to be reaped, oldest first."""
    done = subprocess.run(
        ["ps", "-eo", "pgid=,pid=,stat=", "--sort=start_time,pid"],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    return [int(pid) for pgid, pid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


def all_end(group: int, *, within_s: float = 20.0) -> bool:
    """Whether a group's processes end by themselves: Python's own helpers end after its parent."""
    deadline = time.monotonic() + within_s
    while alive_in_group(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_torchrun(text: str, folder: Path, processes: int) -> None:
    """Run a script, which is given the folder, by torchrun; one process runs it alone."""
    script = folder / "script.py"
    script.write_text(text)
    env = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    torchrun += ["--master-port", str(free_port())]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
