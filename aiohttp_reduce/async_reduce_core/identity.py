"""What makes two coroutines the same call: the function and each argument, by equality and type.

Never compares hashes or names: two keys are equal only if the code and the globals are the same objects, and
the values in the closure and the arguments are equal and of equal types.
"""

import functools
import inspect
import os
import sys
from collections.abc import Coroutine, Hashable
from types import CodeType, CoroutineType
from typing import Any
from weakref import WeakKeyDictionary


class NamedIdent(str):
    """An identity as hooks see it: a readable str, with the `name` that its figures are counted under."""

    __slots__ = ("name",)
    name: str

    def __new__(cls, text: str, name: str) -> "NamedIdent":
        self = super().__new__(cls, text)
        self.name = name
        return self


def typed(value: Any) -> Hashable:
    """The value with its type, so that 1, True and 1.0 differ, inside tuples and frozensets too."""
    cls = type(value)
    if isinstance(value, tuple):
        return (cls, *map(typed, value))
    if cls is frozenset:
        return (cls, frozenset(map(typed, value)))
    if cls is float and value == 0.0:
        return (cls, str(value))  # 0.0 == -0.0, and functions tell them apart
    return (cls, value)


def coroutine_key(coro: Coroutine[Any, Any, Any]) -> Hashable:
    """The automatic identity of a coroutine that has not started; hashing it fails if an argument cannot be.

    Raises TypeError for what is no such coroutine.
    """
    try:
        frame = coro.cr_frame  # type: ignore[attr-defined]
        code = coro.cr_code  # type: ignore[attr-defined]
    except AttributeError:
        raise TypeError(_not_a_coroutine(coro)) from None
    if frame is None or coro.cr_suspended or coro.cr_running:  # type: ignore[attr-defined]
        raise TypeError(
            f"async_reduce() takes a coroutine that has not started; {coro!r} is running or finished: "
            "pass a fresh call, or a task's result through your own coroutine"
        )
    # The code and globals objects live as long as the frame does, and the frame as long as the flight:
    # their ids cannot be reused while the key is in a table.
    parts: list[Any] = [id(code), id(frame.f_globals)]
    bound = frame.f_locals
    if code.co_freevars:
        bound = dict(bound)
        closure = [(name, bound.pop(name)) for name in code.co_freevars if name in bound]
        parts += [(name, typed(value) if _hashable(value) else _Same(value)) for name, value in closure]
    # One flat tuple of types and values: the names are those of the code, in its order.
    for value in bound.values():
        cls = type(value)
        parts.append(cls)
        parts.append(value if cls in _PLAIN else typed(value))
    return tuple(parts)


def explicit_key(ident: Any, coro: Any = None) -> Hashable:
    """The key of an explicit `ident`. Raises TypeError if `coro` is given and is no coroutine."""
    if coro is not None and type(coro) is not CoroutineType and not isinstance(coro, Coroutine):
        raise TypeError(_not_a_coroutine(coro))
    return ident if type(ident) is str else (_EXPLICIT, typed(ident))  # no other kind of key is a str


def unhashable(coro: Any, ident: Any) -> str:
    """Why no key could be made: names the function and the argument, and shows the way out."""
    if coro is None or (ident is not None and not isinstance(ident, Coroutine)):
        return f"ident must be hashable, got {ident!r}; pass a str or a tuple of plain values"
    function = coro.cr_code.co_qualname
    for name, value in coro.cr_frame.f_locals.items():
        try:
            hash(typed(value))
        except TypeError as error:
            return (
                f"argument {name!r} of {function}() is not hashable ({error}), so no identity can be made of it; "
                f"say what identifies the call: async_reduce({function}(...), ident='...')"
            )
    return f"the arguments of {function}() are not hashable; pass ident=..."


_EXPLICIT = "explicit ident"
# Types without values inside them that compare equal across types.
_PLAIN = frozenset({str, bytes, int, bool, type(None)})


class _Same:
    """Compares a value by `is`, and keeps it: the id of one that a closure let go may be given to another."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _hashable(value: Any) -> bool:
    try:
        hash(typed(value))
    except TypeError:
        return False
    return True


def _not_a_coroutine(value: object) -> str:
    hint = "call it: async_reduce(f(...))" if inspect.iscoroutinefunction(value) else "wrap it in an async def"
    return f"async_reduce() takes a coroutine, got {value!r}; {hint}"


def location(coro: Coroutine[Any, Any, Any]) -> str:
    """`package.module:qualname` of the coroutine's function, the module relative to `sys.path`."""
    code = getattr(coro, "cr_code", None)
    qualname = getattr(coro, "__qualname__", type(coro).__qualname__)
    if not isinstance(code, CodeType):
        return f"{type(coro).__module__}:{qualname}"
    frame = getattr(coro, "cr_frame", None)
    module = _module_of_file(code.co_filename)
    if module is None and frame is not None:
        module = _modules_without_file[code] = str(frame.f_globals.get("__name__"))
    elif module is None:
        module = _modules_without_file.get(code)  # the coroutine has ended, and its globals are gone
    return f"{module or '<unknown module>'}:{qualname}"


_modules_without_file: WeakKeyDictionary[CodeType, str] = WeakKeyDictionary()
"""The modules of code that was typed in a console, a notebook or `exec`."""


@functools.lru_cache(maxsize=1024)
def _module_of_file(filename: str) -> str | None:
    root, extension = os.path.splitext(filename)
    if extension not in {".py", ".pyc"}:
        return None
    folders = [os.path.abspath(folder) + os.sep for folder in sys.path]
    folder = max((folder for folder in folders if root.startswith(folder)), key=len, default=None)
    if folder is None:
        return None
    parts = root[len(folder) :].split(os.sep)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def describe(coro: Coroutine[Any, Any, Any], key: Hashable) -> NamedIdent:
    """The automatic identity as hooks see it."""
    name = location(coro)
    return NamedIdent(f"{name}(<state_hash:{hash(key)}>)", name)
