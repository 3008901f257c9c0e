"""Install the peers that are programs, where that can be done: `python -m bench.install`.

With `apt-get`, as root or by a `sudo` that asks for no password. Whatever is missing in the end is said, and fails
nothing. A service that a package brings is not to start: the bench runs its own, set up by itself.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .proxies import NotFoundError, program

# What is run, and the package that has it.
PROGRAMS = {"wrk": "wrk", "nginx": "nginx", "varnishd": "varnish"}
# Debian asks this program whether a package may start a service; 101 is no.
_POLICY = Path("/usr/sbin/policy-rc.d")
_WITHIN = 600.0


def missing() -> list[str]:
    """The packages of what is not found."""
    return [package for name, package in PROGRAMS.items() if not _is_found(name)]


def _is_found(name: str) -> bool:
    try:
        program(name)
    except NotFoundError:
        return False
    return True


def as_root() -> list[str] | None:
    """What goes before a command so that root runs it, or None where we cannot be root."""
    if os.geteuid() == 0:
        return []
    sudo = ["sudo", "-n"]
    return sudo if shutil.which("sudo") and _run([*sudo, "true"]) else None


def install(packages: Sequence[str], prefix: Sequence[str]) -> None:
    """Install them, and start none of their services."""
    apt = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    with _no_services(prefix):
        _run([*apt, "update"])
        for package in packages:  # one that is not to be had does not keep the others away
            _run([*apt, "install", "-y", "--no-install-recommends", package])


@contextmanager
def _no_services(prefix: Sequence[str]) -> Iterator[None]:
    """Say no to services, unless somebody else answers that already."""
    is_ours = not _POLICY.exists()
    if is_ours:
        _run([*prefix, "sh", "-c", f"printf '#!/bin/sh\\nexit 101\\n' > {_POLICY} && chmod 755 {_POLICY}"])
    try:
        yield
    finally:
        if is_ours:
            _run([*prefix, "rm", "-f", str(_POLICY)])


def _run(command: Sequence[str]) -> bool:
    """Whether it succeeded; what it says is shown if it did not."""
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_WITHIN,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{' '.join(command)}: {error}")
        return False
    if result.returncode:
        print(f"{' '.join(command)}: {result.stdout.strip()[-500:]}")
    return result.returncode == 0


def main() -> None:
    packages = missing()
    if not packages:
        return
    prefix = as_root()
    if shutil.which("apt-get") is None or prefix is None:
        why = "there is no apt-get" if prefix is not None else "that takes root, or sudo without a password"
        print(f"not installed, and not to be installed from here: {', '.join(packages)} ({why})")
        return
    print(f"installing {', '.join(packages)} ...", flush=True)
    install(packages, prefix)
    if left := missing():
        print(f"still missing, and so not measured: {', '.join(left)}")


if __name__ == "__main__":
    main()
