"""Server processes: started on one core and a free loopback port, waited for, and ended by their id. Linux only."""

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE = _CORES[0]
LOAD_CORE = _CORES[-1]
_READY_WITHIN = 15.0
_ENDS_WITHIN = 5.0
_FILES = 16_384
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Server:
    """A server that answers on 127.0.0.1."""

    name: str
    pid: int
    port: int

    def cpu(self) -> float:
        """Processor seconds that the process (all its threads, those that ended too) has used so far."""
        # The per-process clock id of Linux's clock_getcpuclockid(3): nanoseconds, where /proc/PID/stat has ticks.
        return time.clock_gettime((~self.pid << 3) | 2)

    def post(self, path: str) -> bytes:
        """What it answers."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: bytes = answer.read()
            return body

    def runs(self) -> int:
        """How many handlers that are counted have run."""
        return int(self.post("/runs"))


def allow_connections() -> None:
    """Let this process, and those that it starts, have as many open as these benchmarks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(name: str, command: list[str], port: int) -> Iterator[Server]:
    """Run a server command on the server's core until the block ends. Raises RuntimeError if it does not answer."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *command],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            if not _answers(process, port):
                output.seek(0)
                said = output.read()[-2000:].decode(errors="replace")
                raise RuntimeError(f"{name} does not answer on port {port}: {said}")
            yield Server(name, process.pid, port)
        finally:
            process.terminate()
            try:
                process.wait(_ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(_ENDS_WITHIN)


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    end = time.monotonic() + _READY_WITHIN
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


@contextmanager
def running_module(name: str, module: str, mode: str) -> Iterator[Server]:
    """A module of ours that serves: `python -m MODULE MODE PORT`."""
    port = free_port()
    with running(name, [sys.executable, "-m", module, mode, str(port)], port) as server:
        yield server


def app(mode: str) -> AbstractContextManager[Server]:
    """The application of `bench.apps` in one of its modes, on uvloop."""
    return running_module(mode, "bench.apps", mode)
