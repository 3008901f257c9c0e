"""The public names and their signatures are those of `public_surface.txt`: a change of them is meant."""

import enum
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).with_name("public_surface.txt")
MODULES = (
    "aiohttp_reduce",
    "aiohttp_reduce.async_reduce_core",
    "aiohttp_reduce.client",
    "aiohttp_reduce.hooks",
    "aiohttp_reduce.server",
    "aiohttp_reduce.stats",
)
HOW_TO_ACCEPT = f"""
The public surface has changed. If that is meant, it is a change of the API: say so in CHANGELOG.md, and accept it with

    python -m tests.test_public_surface

which writes tests/{SNAPSHOT.name}. If it is not, a public name was moved, renamed or made by accident.
"""


def surface() -> str:
    """All public names, with their signatures, as text."""
    lines: list[str] = []
    seen: dict[int, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        lines.append(f"[{name}]")
        for public in sorted(module.__all__):
            thing = getattr(module, public)
            before = seen.setdefault(id(thing), name)
            lines += described(public, thing) if before == name else [f"{public}: that of {before}"]
        lines.append("")
    return "\n".join(lines)


def described(name: str, thing: Any) -> Iterator[str]:
    if isinstance(thing, type):
        if issubclass(thing, enum.Enum):
            yield f"class {name}, an enum{' of strings' * issubclass(thing, str)}"
            yield from (f"    {member.name} = {member.value!r}" for member in thing)
            return
        yield f"class {name}{signature(thing)}" if "__init__" in own(thing) else f"class {name}"
        for member in sorted(own(thing)):
            if not member.startswith("_") or member in {"__call__", "__and__", "__len__"}:
                yield f"    {described_member(thing, member)}"
    elif inspect.isfunction(thing):
        yield f"{'async ' * inspect.iscoroutinefunction(thing)}def {name}{signature(thing)}"
    else:
        yield f"{name}: {type(thing).__name__}"


def own(cls: type) -> set[str]:
    """The members that this package defines, not what it has from aiohttp or Python."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("aiohttp_reduce")]
    return {name for base in ours for name in vars(base)}


def described_member(cls: type, name: str) -> str:
    member = inspect.getattr_static(cls, name)
    if isinstance(member, property):
        return f"{name}: property" + (", that can be set" if member.fset else "")
    if inspect.isfunction(member):
        return f"{'async ' * inspect.iscoroutinefunction(member)}def {name}{signature(member)}"
    return f"{name}: attribute"


def signature(function: Any) -> str:
    """Names, kinds and defaults of the parameters. (Their types are pinned by `tests/typing`.)"""
    parameters = [
        one.replace(annotation=one.empty, default=one.default if one.default is one.empty else Shown(one.default))
        for one in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(parameters))


class Shown:
    """A default, readable and the same on every run."""

    def __init__(self, default: Any) -> None:
        self._default = default

    def __repr__(self) -> str:
        default = self._default
        if inspect.isfunction(default):
            return str(default.__name__)
        return repr(default) if default is None or isinstance(default, (bool, int, float, str, tuple)) else "..."


def test_the_public_surface_is_as_it_was() -> None:
    assert surface() == SNAPSHOT.read_text(), HOW_TO_ACCEPT


def test_public_names_are_there_and_say_what_they_are() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        assert list(module.__all__) == sorted(module.__all__, key=lambda public: (not public.isupper(), public))
        assert module.__doc__
        for public in module.__all__:
            thing = getattr(module, public)
            if isinstance(thing, type) or inspect.isfunction(thing):
                assert thing.__doc__, f"{name}.{public} has no docstring"


if __name__ == "__main__":
    SNAPSHOT.write_text(surface())
