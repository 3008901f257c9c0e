"""What is published: the files of the wheel and of the sdist, their metadata, and a base that needs little."""

import email.message
import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatch_fancy_pypi_readme", reason="the build backend is not installed (group `test`)")

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"
JUNK = (
    ".venv/lib/module.py",
    ".venv-3.12/lib/module.py",
    "aiohttp_reduce/__pycache__/stats.cpython-311.pyc",
    "tests/__pycache__/harness.cpython-311.pyc",
    "bench/results/run.json",
    "docs/_build/index.html",
    "dist/old.whl",
    ".mypy_cache/x",
    ".pytest_cache/x",
    ".ruff_cache/x",
    ".hypothesis/x",
    "notes.txt",
)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
# Imports the package and all its modules where nothing else is to be had but what aiohttp and yarl have loaded.
IMPORTS = """
import sys
sys.path.insert(0, sys.argv[1])
import aiohttp, yarl

class Nothing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {"aiohttp", "aiohttp_reduce"}:
            raise ModuleNotFoundError(f"the base imports {name}")

sys.meta_path.insert(0, Nothing())
import aiohttp_reduce, importlib, pkgutil
for module in pkgutil.walk_packages(aiohttp_reduce.__path__, "aiohttp_reduce."):
    if module.name != "aiohttp_reduce.pytest_plugin":
        importlib.import_module(module.name)
print(aiohttp_reduce.__file__)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and an sdist, built of a copy of the tree in which much lies around."""
    folder = tmp_path_factory.mktemp("packaging")
    tree, out = folder / "tree", folder / "dist"
    left_out = shutil.ignore_patterns(".venv*", ".git", "__pycache__", "*_cache", ".hypothesis", "results", "_build")
    shutil.copytree(ROOT, tree, ignore=left_out)
    for name in JUNK:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("junk")
    code = "from hatchling.build import *; import sys; build_wheel(sys.argv[1]); build_sdist(sys.argv[1])"
    out.mkdir()
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=tree, check=True, capture_output=True, text=True)
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.parser.Parser().parsestr(archive.read(f"aiohttp_reduce-{VERSION}.dist-info/METADATA").decode())


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"aiohttp_reduce-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    about = f"aiohttp_reduce-{VERSION}.dist-info"
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "aiohttp_reduce").rglob("*.py")]
    assert sorted(names) == sorted(
        [
            *modules,
            "aiohttp_reduce/py.typed",
            f"{about}/METADATA",
            f"{about}/RECORD",
            f"{about}/WHEEL",
            f"{about}/licenses/LICENSE",
        ]
    )


def test_the_sdist_has_all_that_its_makefile_needs_and_nothing_that_lay_around(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {member.name.removeprefix(f"aiohttp_reduce-{VERSION}/") for member in archive if member.isfile()}
    kept = ("aiohttp_reduce", "tests", "examples", "bench", "docs", ".ci")
    expected = {
        file.relative_to(ROOT).as_posix()
        for folder in kept
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and not re.search(r"/(__pycache__|results|_build|\.\w+_cache|\.hypothesis)/", str(file))
    }
    at_the_top = {path.name for path in ROOT.glob("*.md")}
    assert at_the_top >= {"README.md", "CHANGELOG.md", "SECURITY.md"}
    at_the_top |= {"LICENSE", "Makefile", "PKG-INFO", "pyproject.toml", ".gitignore"}
    assert names == expected | at_the_top
    assert names >= {"tests/test_packaging.py", "docs/reasons.md", "examples/demo.py", ".ci/matrix.py"}


def test_metadata(metadata: email.message.Message) -> None:
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == ("aiohttp-reduce", VERSION, ">=3.11")
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("MIT", ["LICENSE"])
    assert metadata["Summary"].endswith(".")
    assert metadata.get_all("Provides-Extra") == ["uvloop"]
    requires = metadata.get_all("Requires-Dist", [])
    assert [one for one in requires if "extra ==" not in one] == ["aiohttp<4,>=3.12", "yarl>=1.17"]
    assert metadata.get_all("Project-URL") is None  # none is known


def test_the_version_stands_in_one_place() -> None:
    places = [
        path.relative_to(ROOT).as_posix()
        for path in [ROOT / "pyproject.toml", *(ROOT / "aiohttp_reduce").rglob("*.py")]
        if VERSION in path.read_text()
    ]
    assert places == ["aiohttp_reduce/_version.py"]
    assert (
        f"({VERSION})" in (ROOT / "CHANGELOG.md").read_text() or f"## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_classifiers_are_known_to_the_index(metadata: email.message.Message) -> None:
    from trove_classifiers import classifiers  # hatchling needs it too

    given = metadata.get_all("Classifier", [])
    assert set(given) <= classifiers
    assert {"Typing :: Typed", "Framework :: aiohttp", "Programming Language :: Python :: 3.11"} <= set(given)


def test_the_description_is_the_readme_and_its_links_work_on_an_index(metadata: email.message.Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    readme = (ROOT / "README.md").read_text()
    lines = [
        re.sub(r"(?<![\w\])])\[([^\]]+)\]\((?!https:|#).*?\)", r"\1", line)
        for line in readme.splitlines()
        if line[:2] != "!["
    ]
    assert text.splitlines() == lines
    assert _CODE.findall(text) == _CODE.findall(readme)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    prose = _CODE.sub("", text)
    for target in re.findall(r"\]\((.*?)\)", prose):
        assert target.startswith("https://") or target.removeprefix("#") in anchors, target


def test_the_base_needs_aiohttp_and_yarl_alone(wheel: Path, tmp_path: Path) -> None:
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    target = tmp_path / "empty"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(wheel)],
        check=True,
        env={**os.environ, "PIP_CONFIG_FILE": os.devnull},
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", IMPORTS, str(target)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.strip() == str(target / "aiohttp_reduce" / "__init__.py")
