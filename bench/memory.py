"""How much memory a process takes, as Linux counts it."""

from pathlib import Path


def resident(process: int | str = "self", *, peak: bool = False) -> int:
    """The bytes of a process that are in memory now, or were at most since `reset_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/{process}/status")


def reset_peak(process: int | str = "self") -> None:
    """Count the peak from now on (proc_pid_clear_refs(5))."""
    Path(f"/proc/{process}/clear_refs").write_text("5")
