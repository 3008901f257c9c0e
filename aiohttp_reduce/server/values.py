"""Values in a request's mapping, frozen: what they are now, to be compared with another request's, or with later.

Values are the same if they are of one type and equal, the parts of a container and the attributes of an object one
by one. An object that is hashable counts as one that does not change, and is the same as what equals it. Of a value
whose type defines no equality (a connection, a session) only the type counts; singletons (None, members of an
enumeration, time zones, classes, functions) and what cannot be looked through are the same as themselves alone.
Nothing here asks an object for what it would have to compute (`__class__`, `__getattr__`, properties).
"""

import datetime
import enum
import functools
import types
from collections import deque
from collections.abc import Hashable, Iterable
from decimal import Decimal
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy, MultiDict, MultiDictProxy

# A value is looked through as far as so many others in it ; what is larger is only itself.
_MAX_PARTS: Final = 256
_MAX_BYTES: Final = 65_536

_ATOMS: Final = frozenset({str, bytes, int, bool, type(None)})
_SINGLETONS: Final = (
    enum.Enum, type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, datetime.tzinfo,
)  # fmt: skip
# Equal ones may still be written in different ways (0.0 and -0.0, 1.0 and 1.00, one instant in two time zones).
_BY_REPR: Final = (float, complex, Decimal, datetime.datetime, datetime.time, datetime.timezone)
# They define no equality, but are what they were made of.
_BY_CONTENTS: Final = (functools.partial, BaseException)
# They define equality as being the same object.
_OF_AIOHTTP: Final = (web.BaseRequest, web.Application, web.StreamResponse)
_SEQUENCES: Final = (list, tuple, deque)
_SETS: Final = (set, frozenset)
_MULTIDICTS: Final = (MultiDict, CIMultiDict, MultiDictProxy, CIMultiDictProxy)
_CONTAINERS: Final = (dict, *_SEQUENCES, *_SETS, bytearray)


class _Missing:
    pass


MISSING: Final = _Missing()
"""Stands for an item that is not there."""

_THE_REQUEST: Final = _Missing()


class _TooLarge(Exception):
    pass


class _Leaf:
    """A value that is the same as another of its type that equals it; as long as none of them changes."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Leaf) and _equal(self.value, other.value)

    def __hash__(self) -> int:
        return hash(self.value)


class _Itself:
    """A value that is the same as itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def frozen(value: Any, request: web.BaseRequest) -> Any:
    """What a value is now: equal to what this gives for the same value of another request, or later.

    The request that a value belongs to counts as equal where it stands within it.
    """
    cls: Any = type(value)
    if cls in _ATOMS:
        return cls, value
    try:
        if not _has_equality(cls):
            return (cls,)
        return _Freezing(request).of(value)
    except Exception:
        return _Itself(value)


def is_same(was: Any, value: Any, leader: web.BaseRequest, other: Any, follower: web.BaseRequest) -> bool:
    """Whether the leader's item, frozen as `was`, is the follower's; False where that cannot be told."""
    if bool(was == frozen(other, follower)):
        return True
    # An object may say of others that they equal it although their attributes differ. As long as it has not changed.
    cls: Any = type(value)
    try:
        if isinstance(was, _Itself) or cls in _ATOMS or not _is_object(cls):
            return False
        return bool(was == frozen(value, leader)) and _equal(value, other)
    except Exception:
        return False


def as_key(value: Any, request: web.BaseRequest) -> Hashable:
    """Something hashable that is equal for items that are the same; None, for all of them, where there is none."""
    parts: Hashable = frozen(value, request)
    try:
        hash(parts)
    except Exception:
        return None
    return parts


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:
        return False


@functools.lru_cache(maxsize=256)
def _has_equality(cls: type) -> bool:
    equality: object = cls.__eq__
    return equality is not object.__eq__ or cls is types.NoneType or issubclass(cls, (*_SINGLETONS, *_BY_CONTENTS))


@functools.lru_cache(maxsize=256)
def _base_of(cls: Any) -> Any:
    """What values of a class are taken apart as; `object` for those with attributes, None for singletons.

    (m: remembering it makes a user with five roles 14 us instead of 38.)
    """
    if issubclass(cls, (*_OF_AIOHTTP, *_SINGLETONS)) and cls is not datetime.timezone:
        return None
    bases: tuple[Any, ...] = (*_CONTAINERS, *_MULTIDICTS, *_BY_REPR, *_BY_CONTENTS, types.MappingProxyType)
    for base in bases:
        if issubclass(cls, base):
            return base
    return object if _has_equality(cls) else None


@functools.lru_cache(maxsize=256)
def _is_object(cls: Any) -> bool:
    """Whether values of a class are objects with an equality of their own."""
    return _has_equality(cls) and not issubclass(cls, (*_CONTAINERS, *_MULTIDICTS, *_BY_REPR, *_BY_CONTENTS))


class _Freezing:
    """Takes a value apart into tuples; raises where it is too large."""

    __slots__ = ("_left", "_request")

    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self._left = _MAX_PARTS

    def of(self, value: Any) -> Hashable:
        self._left -= 1
        if self._left < 0:
            raise _TooLarge
        cls: Any = type(value)
        if cls in _ATOMS:
            return cls, value
        if value is self._request:
            return _THE_REQUEST
        base = _base_of(cls)
        if base is object:
            return self._of_object(value, cls)
        if base is None:
            return _Itself(value)
        # A class of its own may have an order, or more to it.
        return cls, self._contents(value, cls, base), None if cls is base else self._attributes(value, cls)

    def _all(self, values: Iterable[Any], number: int) -> list[Hashable]:
        self._left -= number
        if self._left < 0:
            raise _TooLarge
        return [(type(value), value) if type(value) in _ATOMS else self.of(value) for value in values]

    def _contents(self, value: Any, cls: type, base: Any) -> Hashable:
        if base is dict:
            number = dict.__len__(value)
            keys, items = self._all(dict.keys(value), number), self._all(dict.values(value), number)
            pairs = zip(keys, items, strict=True)
            return _unordered(pairs) if cls is dict else tuple(pairs)
        if base in _SEQUENCES:
            return tuple(self._all(base.__iter__(value), base.__len__(value)))
        if base in _SETS:
            return _unordered(self._all(base.__iter__(value), base.__len__(value)))
        if base in _BY_REPR:
            return base.__repr__(value), self.of(getattr(value, "tzinfo", None)), getattr(value, "fold", 0)
        if base in _MULTIDICTS:
            return tuple([(name, self.of(item)) for name, item in base.items(value)])
        if base is functools.partial:
            return self.of((value.func, value.args, value.keywords))
        if base is types.MappingProxyType:
            return self.of(value.copy())
        if base is BaseException:
            return self.of(value.args)
        if bytearray.__len__(value) > _MAX_BYTES:
            raise _TooLarge
        return bytes(value)

    def _of_object(self, value: Any, cls: type) -> Hashable:
        hashes: object = cls.__hash__  # None where the class defines equality alone: it can be changed
        if hashes is not None:
            try:
                if not _is_proxy(cls):
                    hash(value)
                return _Leaf(value)
            except TypeError:
                pass  # there is something in it that can be changed
        return _Itself(value) if _holds_more_than_attributes(cls) else (cls, self._attributes(value, cls))

    def _attributes(self, value: Any, cls: type) -> Hashable:
        found: list[tuple[Hashable, Hashable]] = []
        beside = _beside_the_point(cls)
        for slot in _slots_of(cls):
            try:
                item = slot.__get__(value, cls)
            except AttributeError:
                continue
            if slot.__name__ not in beside:
                found.append((slot.__name__, self.of(item)))
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            pass
        else:
            found += [(name, self.of(item)) for name, item in dict.items(attributes) if name not in beside]
        return _unordered(found)


def _unordered(parts: Iterable[Hashable]) -> Hashable:
    parts = tuple(parts)
    try:
        return frozenset(parts)
    except TypeError:
        # Something in it is not hashable: only what was put there in the same order is equal.
        return parts


@functools.lru_cache(maxsize=256)
def _is_proxy(cls: type) -> bool:
    """Whether objects of a class may stand for others, which they make when they are asked for something."""
    getattribute: object = cls.__getattribute__
    return getattribute is not object.__getattribute__ or hasattr(cls, "__getattr__") or "__class__" in vars(cls)


@functools.lru_cache(maxsize=256)
def _beside_the_point(cls: type) -> frozenset[str]:
    """Attributes that are only kept for later, or that a class says are not a part of its equality."""
    names = {
        name
        for parent in cls.__mro__
        for name, member in vars(parent).items()
        if isinstance(member, functools.cached_property)
    }
    fields: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
    names.update(name for name, declared in fields.items() if not declared.compare)
    names.update(declared.name for declared in getattr(cls, "__attrs_attrs__", ()) if not declared.eq)
    return frozenset(names)


@functools.lru_cache(maxsize=256)
def _slots_of(cls: type) -> tuple[Any, ...]:
    return tuple(
        member
        for parent in cls.__mro__
        for member in vars(parent).values()
        if type(member) is types.MemberDescriptorType
    )


@functools.lru_cache(maxsize=256)
def _holds_more_than_attributes(cls: type) -> bool:
    """Whether there is more to objects of a class than attributes: of one made in C, or derived from such a one."""
    if cls is types.SimpleNamespace:
        return False
    explained = len(_slots_of(cls)) + (cls.__weakrefoffset__ > 0) + (cls.__dictoffset__ > 0)
    return bool(cls.__itemsize__) or cls.__basicsize__ != object.__basicsize__ + explained * tuple.__itemsize__
