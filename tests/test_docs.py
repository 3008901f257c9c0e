"""The pages in `docs/`: their code runs, every public name is in the reference, links lead to files.

That they build, without a warning, `make docs` tells.
"""

import ast
import asyncio
import functools
import gc
import importlib
import inspect
import logging
import re
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

import aiohttp_reduce

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.relative_to(DOCS).parts)
PROJECT = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
# Each says in its `__all__` what is public.
PACKAGES = ("", ".server", ".client", ".async_reduce_core", ".hooks", ".stats", ".testing")

_BLOCK = re.compile(
    r"^(?P<indent> *)```python(?P<options>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_FENCED = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2$", re.DOTALL | re.MULTILINE)
_DIRECTIVE = re.compile(r"^\.\. (?P<kind>[\w:]+):: (?P<name>[\w.]+)", re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(<?(?P<target>[^)>\s]+)>?[^)]*\)|<(?:img|a)\s[^>]*?(?:src|href)=\"(?P<html>[^\"]+)\"")
_INCLUDE = re.compile(r"^```\{include\} (\S+)$", re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(text: str) -> list[tuple[str, bool]]:
    """The Python of a page, each block with whether it is to run."""
    found = []
    for block in _BLOCK.finditer(text):
        options = block["options"].split()
        assert set(options) <= {"no-run"}, f"```python takes no-run, got {block['options']!r}"
        found.append((textwrap.dedent(block["code"]), "no-run" not in options))
    return found


async def run(where: str, blocks: list[tuple[str, bool]], **given: Any) -> dict[str, Any]:
    """Run the blocks in order, in one namespace; then `main()`, if there is one."""
    module = types.ModuleType("page")
    names = vars(module)
    names.update(given)
    for number, (code, runs) in enumerate(blocks, 1):
        place = f"{where}, block {number}"
        if runs:
            exec(compile(code, place, "exec", dont_inherit=True), names)
        else:
            compile(code, place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if inspect.iscoroutinefunction(main := names.get("main")):
        await asyncio.wait_for(main(), 5)
    return names


@pytest.fixture
def tidy() -> Iterator[None]:
    """What a page sets of logging is set back, and what it left open is told here rather than in a later test."""
    root, ours = logging.getLogger(), logging.getLogger("aiohttp_reduce")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    gc.collect()


WITH_CODE = [(name_of(page), blocks) for page in PAGES if (blocks := blocks_of(page.read_text("utf-8")))]


@pytest.mark.one_loop
@pytest.mark.parametrize(("page", "blocks"), [pytest.param(*one, id=one[0]) for one in WITH_CODE])
async def test_the_code_of_a_page_runs(
    page: str, blocks: list[tuple[str, bool]], tidy: None, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(page, blocks)


@pytest.mark.one_loop
async def test_blocks_of_a_page_share_names_and_main_is_awaited() -> None:
    page = """
```python
import asyncio

seen = []
```

- in a list:

  ```python
  async def main():
      await asyncio.sleep(0)
      seen.append("main")
  ```

```python no-run
async with nothing:
    raise AssertionError("only compiled")
```

```sh
not python
```
"""
    names = await run("page", blocks_of(page))
    assert names["seen"] == ["main"]


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nasyncio.run\n```", NameError),  # a page imports what it uses
        ("```python\nimport asyncio\nasyncio.nothing\n```", AttributeError),
        ("```python no-run\nnot Python!\n```", SyntaxError),
        ("```python norun\n1\n```", AssertionError),
        ("```python\nasync def main():\n    1 / 0\n```", ZeroDivisionError),
    ],
)
async def test_wrong_code_in_a_page_is_told(page: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await run("page", blocks_of(page))


def public_objects() -> Iterator[tuple[str, Any]]:
    """Every public name with its package, and what it stands for."""
    for suffix in PACKAGES:
        package = "aiohttp_reduce" + suffix
        module = importlib.import_module(package)
        for name in module.__all__:
            yield f"{package}.{name}", getattr(module, name)


def described() -> dict[str, Any]:
    """What the reference describes, by the full name under which it does."""
    found: dict[str, Any] = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        module = ""
        for directive in _DIRECTIVE.finditer(page.read_text("utf-8")):
            kind, name = directive["kind"], directive["name"]
            if kind in {"currentmodule", "py:currentmodule", "module", "py:module"}:
                module = name
            elif kind == "automodule":
                module = name
                for public in importlib.import_module(name).__all__:
                    found[f"{name}.{public}"] = getattr(importlib.import_module(name), public)
            elif kind.startswith("auto"):
                full = name if name.startswith("aiohttp_reduce.") else f"{module}.{name}"
                home, _, last = full.rpartition(".")
                found[full] = getattr(importlib.import_module(home), last)
    return found


def test_every_public_name_is_in_the_reference() -> None:
    known = described().values()
    names = dict(public_objects())
    assert len(names) > 30
    assert [name for name, value in names.items() if not any(value is one for one in known)] == []


def test_nothing_is_described_twice() -> None:
    found = described()
    assert [
        (one, other) for one, value in found.items() for other in found if one < other and found[other] is value
    ] == []


def parameters_of(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in {"self", "coro", "request"}]


@pytest.mark.parametrize(
    "function",
    [
        aiohttp_reduce.reduce_middleware,
        aiohttp_reduce.reduce_client_middleware,
        aiohttp_reduce.ReducingClientSession,
        aiohttp_reduce.AsyncReducer,
        aiohttp_reduce.AsyncReducer.__call__,
        aiohttp_reduce.AsyncReducer.forget,
        aiohttp_reduce.async_reduceable,
    ],
    ids=lambda function: function.__qualname__,
)
def test_the_docstring_describes_every_parameter_once_in_order(function: Callable[..., Any]) -> None:
    listed = re.findall(r"^- `\**(\w+)`: ", inspect.getdoc(function) or "", re.MULTILINE)
    assert [name for name in listed if name != "coro"] == parameters_of(function)


def examples() -> Iterator[Any]:
    """The examples in the docstrings of what is public, methods included."""
    seen: set[int] = set()
    for name, value in public_objects():
        owners = [(name, value)]
        if inspect.isclass(value):
            owners += [(f"{name}.{one}", member) for one, member in vars(value).items() if not one.startswith("_")]
        for owner, documented in owners:
            text = _docstring(owner, documented)
            if "::\n" in text and id(documented) not in seen:
                seen.add(id(documented))
                yield pytest.param(owner, text, id=owner.removeprefix("aiohttp_reduce."))


def _docstring(name: str, value: Any) -> str:
    if value is aiohttp_reduce.async_reduce:
        # It stands under the assignment.
        source = inspect.getsource(importlib.import_module("aiohttp_reduce.async_reduce_core.reducer"))
        found = re.search(r'^async_reduce\b.* = .*?\n"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
        assert found is not None, name
        return found[1]
    return inspect.getdoc(value) or ""


@pytest.mark.one_loop
@pytest.mark.parametrize(("name", "docstring"), list(examples()))
async def test_the_example_of_a_docstring_runs(name: str, docstring: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"::\n\n((?:(?: {4}.*)?\n?)+)", docstring)
    assert blocks, name
    public = {one: getattr(aiohttp_reduce, one) for one in aiohttp_reduce.__all__}
    public |= {"asyncio": asyncio, "aiohttp": aiohttp, "web": web}
    await run(name, [(textwrap.dedent(block), True) for block in blocks], **public)
    for line in capsys.readouterr().out.splitlines():
        assert f"# {line}" in docstring


def links_of(page: Path) -> list[str]:
    """The targets of a page's relative links, pictures and includes."""
    text = page.read_text("utf-8")
    included = _INCLUDE.findall(text)
    text = re.sub(r"(`+)[^`]*?\1", "", _FENCED.sub("", text))
    targets = [link["target"] or link["html"] for link in _LINK.finditer(text)] + included
    return [target for target in targets if not re.match(r"[a-z][a-z0-9+.-]*:|//", target)]


@functools.cache
def headings_of(page: Path) -> set[str]:
    """What can stand after a `#`, as GitHub makes it of a heading."""
    text = _FENCED.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ (.*?)\s*$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in (*PROJECT, *PAGES)])
def test_relative_links_and_pictures_lead_to_files(page: Path) -> None:
    lost = []
    for target in links_of(page):
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (heading and file.suffix == ".md" and heading not in headings_of(file)):
            lost.append(target)
    assert lost == []


def test_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = """
[one](a.md), ![two](pictures/b.svg "title") and <img alt="" src="c.png">; [a place](#two-words), [there](d.md#place)

`[code](e.md)`, [away](https://example.org/f.md)

```text
[code](g.md)
```

```{include} ../h.md
```

## Two words
"""
    page.write_text(text, encoding="utf-8")
    assert links_of(page) == ["a.md", "pictures/b.svg", "c.png", "#two-words", "d.md#place", "../h.md"]
    assert headings_of(page) == {"two-words"}
