"""What the figures were measured on: the machine, and the versions of all that takes part."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from .processes import LOAD_CORE, SERVER_CORE
from .proxies import NotFoundError, program

_PACKAGES = ("aiohttp", "uvloop", "async_reduce", "async-lru", "aiohttp-client-cache", "multidict", "yarl")


def machine() -> str:
    """The machine and the versions, for the top of the table."""
    return "\n".join(
        (
            f"machine: {_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}; "
            f"servers on core {SERVER_CORE}, load on core {LOAD_CORE}; {load()}",
            f"versions: {_ours()}, Python {platform.python_version()}, "
            f"{', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}",
            f"peers: {_said('wrk', '-v')}; {_said('varnishd', '-V')}; {_said('nginx', '-v')}",
        )
    )


def caption() -> str:
    """The same in one line, for below a picture."""
    return (
        f"{_processor()}, {os.cpu_count()} cores; {_ours()}, aiohttp {_version('aiohttp')}, "
        f"uvloop {_version('uvloop')}, Python {platform.python_version()}"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _ours() -> str:
    return f"aiohttp-reduce {_version('aiohttp-reduce')} ({_commit()})"


def load() -> str:
    """What else the machine does."""
    return f"load average {os.getloadavg()[0]:.2f}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _said(name: str, option: str) -> str:
    try:
        path = program(name)
    except NotFoundError as error:
        return str(error)
    result = subprocess.run([path, option], capture_output=True, text=True, timeout=10, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    return lines[0].split(" [", 1)[0].split(" Copyright", 1)[0] if lines else name


def _commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "no commit known"
    return result.stdout.strip()
