"""Which processes of a run are still there."""

import subprocess


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
