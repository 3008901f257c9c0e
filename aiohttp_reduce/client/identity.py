"""Who flies together: the identity of an outgoing request, taken as the request stands at our door."""

from collections.abc import Hashable, Iterable
from typing import Any, Final

from aiohttp import ClientRequest
from aiohttp.client_middlewares import ClientHandlerType
from multidict import CIMultiDict

from .. import _aiohttp
from ..headers import TRACING_HEADERS, Names, differing

DEFAULT_IGNORE_HEADERS: Final = TRACING_HEADERS
"""Request headers that are left out of the identity of outgoing requests; a trailing `*` stands for any ending.

The default of `ignore_headers` on the client: what names one request in a trace. All others are compared.
"""

# The parts of an identity, in their order.
_PARTS: Final = (
    "method", "URL", "headers", "options of reading", "HTTP version", "session", "request class",
    "proxy, TLS or server_hostname",
)  # fmt: skip
# Names of headers remembered with whether they count; an application may make up any number of them.
_MAX_NAMES: Final = 1024


class Identities:
    """Makes identities: everything counts that decides what is sent, whereto, and how the answer is read.

    All headers count but `ignore_headers`, credentials and cookies included.
    """

    __slots__ = ("_ignored", "_names")

    def __init__(self, ignore_headers: Iterable[str]) -> None:
        self._ignored = Names(ignore_headers, fold=True)
        self._names: dict[str, str | None] = {}

    def of(
        self, request: ClientRequest, headers: CIMultiDict[str], way: Hashable, handler: ClientHandlerType
    ) -> Hashable:
        """The identity of a request that had these headers and that way to go, and is to be sent by this handler."""
        return (
            request.method,
            request.url,
            self._headers_of(headers),
            _aiohttp.reading_options_of(handler),
            request.version,
            _aiohttp.session_of(request),
            type(request),
            way,
        )

    def differ_in(self, one: Any, other: Any) -> list[str]:
        """The names of what two identities do not have in common: parts of a call, and headers."""
        names = [name for name, mine, its in zip(_PARTS, one, other, strict=True) if mine != its]
        if "headers" in names:
            at = names.index("headers")
            names[at : at + 1] = differing(one[_PARTS.index("headers")], other[_PARTS.index("headers")])
        return names

    def left_out(self, headers: CIMultiDict[str]) -> list[tuple[str, str]]:
        """The headers that do not count, by name in lower case, sorted by name."""
        pairs = [(name.lower(), value) for name, value in headers.items()]
        return sorted([pair for pair in pairs if pair[0] in self._ignored], key=_by_name)

    def counts(self, name: str) -> bool:
        """Whether a header of this name is in the identity."""
        return name not in self._ignored

    def _headers_of(self, headers: CIMultiDict[str]) -> Hashable:
        """The headers that count with all their values, sorted by name; the lines of one name stay in order."""
        names = self._names
        counted: list[tuple[str, str]] = []
        for name, value in headers.items():
            try:
                folded = names[name]
            except KeyError:
                folded = self._remember(name)
            if folded is not None:
                counted.append((folded, value))
        counted.sort(key=_by_name)
        return tuple(counted)

    def _remember(self, name: str) -> str | None:
        folded = name.lower()
        counted = None if folded in self._ignored else folded
        if len(self._names) >= _MAX_NAMES:
            self._names.clear()
        self._names[name] = counted
        return counted


def _by_name(pair: tuple[str, str]) -> str:
    return pair[0]
