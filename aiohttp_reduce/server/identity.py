"""Who waits together: the identity of an incoming request, built only when two requests meet on one target."""

import enum
import re
from collections.abc import Hashable, Iterable
from operator import itemgetter
from typing import Final

from aiohttp import hdrs, web

from .. import _aiohttp
from .._aiohttp import EVERYTHING, REMOTE
from ..headers import TRACING, TRACING_HEADERS, Names

DEFAULT_IGNORE_HEADERS: Final = frozenset({
    # Connection management. (Upgrade other than websocket is served by aiohttp as an ordinary request.)
    "Connection", "Keep-Alive", "Proxy-Connection", "TE", "Trailer", "HTTP2-Settings", "Upgrade",
    # Client noise.
    "User-Agent", "Referer", "DNT", "Sec-GPC", "Priority", "Upgrade-Insecure-Requests",
    "Sec-CH-UA", "Sec-CH-UA-Mobile", "Sec-CH-UA-Platform", "Cache-Control", "Pragma",
    # Client address.
    "X-Forwarded-For", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fly-Client-IP",
}) | TRACING_HEADERS  # fmt: skip
"""Request headers that are left out of the identity; a trailing `*` stands for any ending.

The default of `ignore_headers` of `aiohttp_reduce.reduce_middleware`: connection management, client noise, the client's
address, and what names one request in a trace. Of Forwarded, which is not among them, host and proto are compared.
"""

DEFAULT_IGNORE_COOKIES: Final = frozenset({"_ga*", "_gid", "_gat*", "_gcl_*", "__utm*", "_fbp", "_pk_*", "_hj*"})
"""Cookies of analytics that are left out of the identity; a trailing `*` stands for any ending.

The default of `ignore_cookies` of `aiohttp_reduce.reduce_middleware`.
"""

# Names of request headers remembered with what to do with them. An attacker may send any number of names:
# the memory is emptied when it is full.
_MAX_NAMES: Final = 4096
_MAX_NAME: Final = 64


_COOKIE: Final = "cookie"
_PLAIN_COOKIE: Final = re.compile(rb" ?([A-Za-z0-9_.-]+)=[^\x00-\x20\x7f-\xff\",;\\]*\Z")
_FORWARDED: Final = "forwarded"
# A forwarded-pair whose value is a token, with a port after it as clients write it, or a quoted string (RFC 7239, 4).
_FORWARDED_PAIR: Final = re.compile(
    r'\s*([!#$%&\'*+\-.^_`|~\w]+)=("(?:[^"\\]|\\.)*"|[!#$%&\'*+\-.^_`|~\w]+(?::\d{1,4})?)\s*\Z', re.ASCII
)
_FORWARDED_SPLIT: Final = re.compile(r'((?:[^";,]|"(?:[^"\\]|\\.)*")*)([;,]|\Z)')


class _Apart(enum.Enum):
    """Headers that are not compared as they are."""

    COOKIE = enum.auto()
    FORWARDED = enum.auto()


class Selection:
    """Which request headers and cookies belong to the identity.

    `headers=None` selects all but `ignore_headers`; otherwise just those in `headers`, whole. Of Cookie, the
    `ignore_cookies` are left out in both cases; of Forwarded only host and proto are compared, unless
    `headers` names it.
    """

    __slots__ = ("_all", "_ignore_cookies", "_names", "_wanted", "_whole_forwarded")

    def __init__(
        self, headers: Iterable[str] | None, ignore_headers: Iterable[str], ignore_cookies: Iterable[str]
    ) -> None:
        self._all = headers is None
        self._wanted = Names(ignore_headers if headers is None else headers, fold=True)
        self._whole_forwarded = headers is not None
        self._ignore_cookies = Names(ignore_cookies, fold=False)
        # As they were received: the name in lower case, how it is compared otherwise, or None if it is left out.
        self._names: dict[bytes, str | _Apart | None] = {}

    def selects(self, name: str) -> bool:
        """Whether the header is in the identity."""
        return (name in self._wanted) is not self._all

    def holds_all_of(self, name: str) -> bool:
        """Whether all of the header is in the identity: equal identities have equal values of it.

        The cookies that are left out are taken as what the application does not look at.
        """
        if name in {EVERYTHING, REMOTE}:
            return False
        return name == "host" or (self.selects(name) and (name != _FORWARDED or self._whole_forwarded))

    def has_credentials(self, request: web.BaseRequest) -> bool:
        """Whether the identity of this request holds credentials: Authorization, or a cookie that counts."""
        headers = _aiohttp.received_headers(request)
        if self.selects("authorization") and any(line.strip() for line in headers.getall(hdrs.AUTHORIZATION, ())):
            return True
        if not self.selects(_COOKIE):
            return False
        pairs = [pair.partition("=") for line in headers.getall(hdrs.COOKIE, ()) for pair in line.split(";")]
        return any(value.strip() and name.strip() not in self._ignore_cookies for name, _, value in pairs)

    def headers_of(self, request: web.BaseRequest) -> Hashable:
        """The selected headers with all their values, sorted by name; the lines of one name stay in order."""
        names = self._names
        selected: list[tuple[str, bytes]] = []
        cookies: list[bytes] = []
        for raw_name, value in _aiohttp.received_pairs(request):
            try:
                name = names[raw_name]
            except KeyError:
                name = self._remember(raw_name)
            if name.__class__ is str:
                selected.append((name, value))
            elif name is _Apart.COOKIE:
                cookies.append(value)
            elif name is _Apart.FORWARDED:
                selected.append((_FORWARDED, forwarded_host_and_proto(value)))
        if cookies:
            kept = self._cookies(cookies)
            if kept:
                selected.append((_COOKIE, kept))
        selected.sort(key=_by_name)
        return tuple(selected)

    def learned_of(self, request: web.BaseRequest, learned: Iterable[str]) -> Hashable:
        """What the request has of the headers that its route's handlers look at."""
        headers = _aiohttp.received_headers(request)
        values: list[Hashable] = []
        for name in learned:
            if name == REMOTE:
                values.append(_aiohttp.remote_of(request))
            elif name == EVERYTHING:
                values.append(tuple(self._rest_of(request)))
            else:
                values.append(tuple(headers.getall(name, ())))
        return tuple(values)

    def difference(self, one: web.BaseRequest, other: web.BaseRequest) -> str | None:
        """A header that is not in the identity, and names no trace, in which two requests differ."""
        mine, others = self._rest_of(one), self._rest_of(other)
        if mine == others:
            return None
        differing = set(mine) ^ set(others)  # there may be thousands
        return min(differing)[0] if differing else mine[0][0]

    def _rest_of(self, request: web.BaseRequest) -> list[tuple[str, bytes]]:
        """The headers that are not wholly in the identity, without those that name a trace, sorted by name."""
        pairs = [(raw.decode("utf-8", "surrogateescape").lower(), v) for raw, v in _aiohttp.received_pairs(request)]
        return sorted(
            [pair for pair in pairs if not self.holds_all_of(pair[0]) and pair[0] not in TRACING], key=_by_name
        )

    def _remember(self, raw_name: bytes) -> "str | _Apart | None":
        name = raw_name.decode("utf-8", "surrogateescape").lower()
        selected: str | _Apart | None = name if self.selects(name) else None
        if selected == _COOKIE:
            selected = _Apart.COOKIE
        elif selected == _FORWARDED and not self._whole_forwarded:
            selected = _Apart.FORWARDED
        if len(raw_name) > _MAX_NAME:
            return selected
        if len(self._names) >= _MAX_NAMES:
            self._names.clear()
        self._names[raw_name] = selected
        return selected

    def _cookies(self, lines: list[bytes]) -> bytes:
        """The cookies that count. What is not plainly one cookie that does not, counts.

        aiohttp reads the first line only, ends a cookie at white space too, and takes a quoted value with whatever
        semicolons are in it: what it could read in another way than this does is kept whole.
        """
        if len(lines) != 1 or b'"' in lines[0]:
            return b"\n".join(lines)
        kept = []
        for pair in lines[0].split(b";"):
            match = _PLAIN_COOKIE.match(pair)
            if match is None or match.group(1).decode("ascii") not in self._ignore_cookies:
                kept.append(pair.strip())
        return b";".join(kept)


_by_name = itemgetter(0)


def forwarded_host_and_proto(line: bytes) -> bytes:
    """Host and proto of each element of a Forwarded line (RFC 7239); the whole line if it is malformed."""
    text = line.decode("utf-8", "surrogateescape")
    elements: list[list[str]] = [[]]
    position = 0
    while True:
        match = _FORWARDED_SPLIT.match(text, position)
        if match is None:
            return line
        pair = match.group(1)
        if pair.strip():
            parsed = _FORWARDED_PAIR.match(pair)
            if parsed is None:
                return line
            name = parsed.group(1).lower()
            if name in {"host", "proto"}:
                elements[-1].append(f"{name}={parsed.group(2)}")
        if match.group(2) == ",":
            elements.append([])
        elif not match.group(2):
            break
        position = match.end()
    # Empty elements stay: the application may ask for the first, or the last.
    kept = ",".join(";".join(pairs) for pairs in elements)
    return kept.encode("utf-8", "surrogateescape")
