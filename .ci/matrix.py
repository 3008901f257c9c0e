"""Run the tests on every supported Python that is found, with the newest aiohttp and with the oldest.

Each gets an environment of its own in `.venv-…`, made once. Says what was run, and what was not found.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
OLDEST_AIOHTTP = "aiohttp==3.12.*"


def interpreter(version: str) -> str | None:
    """A Python of this version that starts: on the PATH, or under pyenv's `versions`."""
    candidates = [shutil.which(f"python{version}"), shutil.which("python3")]
    if pyenv := shutil.which("pyenv"):
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
        candidates += [
            str(path) for path in sorted(Path(root, "versions").glob(f"{version}.*/bin/python"), reverse=True)
        ]
    for candidate in candidates:
        if candidate is None:
            continue
        code = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
        said = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        if said.returncode == 0 and said.stdout.strip() == version:
            return candidate
    return None


def environment(name: str, python: str, *requirements: str) -> str:
    """The Python of the environment with this name, made if it is not there."""
    folder = ROOT / f".venv-{name}"
    binary = str(folder / "bin" / "python")
    stamp = folder / ".made"
    if not stamp.exists() or stamp.stat().st_mtime < (ROOT / "pyproject.toml").stat().st_mtime:
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([binary, "-m", "pip", "install", "-q", "--upgrade", "pip>=25.1"], check=True)
        subprocess.run(
            [
                *(binary, "-m", "pip", "install", "-q", "-e", ".[uvloop]"),
                *("--group", "test", "--group", "ecosystem", *requirements),
            ],
            check=True,
            cwd=ROOT,
        )
        stamp.touch()
    return binary


def main() -> int:
    found = {version: python for version in VERSIONS if (python := interpreter(version)) is not None}
    if "3.11" not in found:
        print("Python 3.11 was not found; it is needed")
        return 1
    runs = [(f"Python {version}, newest aiohttp", version, found[version], ()) for version in found]
    runs.append(("Python 3.11, oldest aiohttp", "3.11-aiohttp312", found["3.11"], (OLDEST_AIOHTTP,)))
    results: list[tuple[str, bool]] = []
    for title, name, python, requirements in runs:
        print(f"\n== {title}", flush=True)
        binary = environment(name, python, *requirements)
        code = "import aiohttp, sys; print('Python', sys.version.split()[0], 'aiohttp', aiohttp.__version__)"
        subprocess.run([binary, "-c", code], check=True)
        sys.stdout.flush()
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run([binary, "-m", "pytest", "--numprocesses=3"], cwd=ROOT, env=env, check=False)
        results.append((title, done.returncode == 0))
    print("\nRun:")
    for title, passed in results:
        print(f"  {'passed' if passed else 'FAILED'}  {title}")
    missing = [version for version in VERSIONS if version not in found]
    if missing:
        print(f"  not found, not run: Python {', '.join(missing)}")
    return 0 if all(passed for _, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main())
