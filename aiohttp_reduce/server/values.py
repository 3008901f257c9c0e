"""Values in a request's mapping: whether two requests have the same, and whether a handler changed one.

Values are equal if they are of one type and `==`, the parts of a container one by one. Of a value whose type
defines no equality (a connection, a session) only the type is compared; singletons (None, members of an
enumeration, classes, functions) are compared by identity.
"""

import enum
import types
from collections import deque
from collections.abc import Hashable
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy

# A value is looked through as far as so many others in it (m: 0.3 us each); what is larger only equals itself.
_MAX_PARTS: Final = 256

_ATOMS: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})
_SINGLETONS: Final = (enum.Enum, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_MULTIDICTS: Final = (MultiDict, CIMultiDict, MultiDictProxy, CIMultiDictProxy)
# They define equality as being the same object.
_OF_AIOHTTP: Final = (web.BaseRequest, web.Application, web.StreamResponse)


class _Missing:
    pass


MISSING: Final = _Missing()
"""Stands for an item that is not there."""

_THE_REQUEST: Final = _Missing()


class _TooLarge(Exception):
    pass


class _Leaf:
    """A value that is equal to another of the same type that equals it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, _Leaf)
        mine, others = self.value, other.value
        return mine is others or (type(mine) is type(others) and bool(mine == others))

    def __hash__(self) -> int:
        return hash(self.value)


class _Itself(_Leaf):
    """A value that is equal to itself alone."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def is_same(one: Any, other: Any, leader: web.BaseRequest, follower: web.BaseRequest) -> bool:
    """Whether the leader's item is the follower's; each one's request, where it stands inside, counts as equal.

    False where that cannot be told.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if not _has_equality(one):
        return True
    try:
        return bool(_parts(one, leader) == _parts(other, follower))
    except Exception:
        return False


def as_it_is(value: Any) -> Any:
    """Something that will not equal what this gives later, if the value was changed in place in between."""
    if type(value) in _ATOMS or not _has_equality(value):
        return None
    try:
        return _Parts(None, deep=True).of(value)
    except Exception:
        return _Itself(value)


def as_key(value: Any, request: web.BaseRequest) -> Hashable:
    """Something hashable that is equal for items that are the same; None, for all of them, where there is none."""
    if not _has_equality(value):
        return (type(value),)
    try:
        parts: Hashable = _parts(value, request)
        hash(parts)
    except Exception:
        return None
    return parts


def _has_equality(value: Any) -> bool:
    equality: object = type(value).__eq__
    return equality is not object.__eq__ or value is None or isinstance(value, _SINGLETONS)


def _parts(value: Any, request: web.BaseRequest) -> Any:
    return _Parts(request, deep=False).of(value)


class _Parts:
    """Takes a value apart into tuples; raises where it is too large.

    `deep` also looks into objects that define equality and can be changed, by their attributes.
    """

    __slots__ = ("_deep", "_left", "_request")

    def __init__(self, request: web.BaseRequest | None, *, deep: bool) -> None:
        self._request = request
        self._deep = deep
        self._left = _MAX_PARTS

    def of(self, value: Any) -> Hashable:
        self._left -= 1
        if self._left < 0:
            raise _TooLarge
        cls = type(value)
        if cls in _ATOMS:
            return cls, value
        if value is self._request:
            return _THE_REQUEST
        if isinstance(value, _OF_AIOHTTP):
            return _Itself(value)
        contents: Any
        hashes: object = cls.__hash__  # None where it defines equality alone: it can be changed
        if isinstance(value, dict):
            contents = self._unordered([(self.of(key), self.of(item)) for key, item in dict.items(value)])
        elif isinstance(value, (set, frozenset)):
            contents = self._unordered([self.of(item) for item in value])
        elif isinstance(value, (list, tuple, deque)):
            contents = tuple([self.of(item) for item in value])
        elif isinstance(value, bytearray):
            contents = bytes(value)
        elif isinstance(value, _MULTIDICTS):
            contents = tuple([(name, self.of(item)) for name, item in value.items()])
        elif hashes is not None:
            return _Leaf(value)
        elif not hasattr(value, "__dict__"):
            return _Itself(value)
        elif not self._deep:
            return _Leaf(value)
        else:
            contents = None
        attributes = getattr(value, "__dict__", None)
        return cls, contents, self.of(dict(attributes)) if attributes else None

    @staticmethod
    def _unordered(parts: list[Any]) -> Any:
        try:
            return frozenset(parts)
        except TypeError:
            # Something in it is not hashable: only what was put in the same order is equal.
            return tuple(parts)
