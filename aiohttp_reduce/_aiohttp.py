"""Every private name of aiohttp that this package touches, each with why and since when.

Read in aiohttp 3.12.15 and 3.14.5. Nothing else in the package names them; `tests/test_aiohttp_internals.py`
fails where one of them goes or changes its meaning.
"""

import functools
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from http.cookies import SimpleCookie
from typing import Any, Final

from aiohttp import StreamReader, hdrs, payload, web
from aiohttp.web_urldispatcher import SystemRoute
from multidict import CIMultiDict, CIMultiDictProxy

_EMPTY: Final[dict[Any, Any]] = {}

# `SystemRoute` (3.0): the route of a request that matched none; a new one is made for each such request.
UNROUTED: Final = SystemRoute


def at_the_door(
    request: web.Request,
) -> tuple[str, str, CIMultiDictProxy[str], StreamReader, Any, web.AbstractRoute, web.Application]:
    """What the server's door needs of every request, in one call.

    The raw target, the method, the headers (as they are, even if a further door has lent others), the body, the
    TLS context (None without TLS, whatever `clone(scheme=...)` said), the route and the application of this
    level. All have public properties (3.0), but those are several calls: together they took 0.6 us of each
    request, this takes 0.1.
    """
    message = request._message
    match_info: Any = request._match_info
    return (
        message.path,
        request._method,
        message.headers,
        request._payload,
        request._transport_sslcontext,
        match_info._route,
        match_info._current_app,
    )


# What `reify` (3.0) keeps in a request's `_cache` of that which says more than one header, by what it says.
_SAYS: Final = {
    "raw_headers": "",
    "message": "",
    "forwarded": "forwarded",
    "keep_alive": "connection",
    "remote": "(remote)",
}
# What it keeps of single headers: it asks for them by name, when it is first looked up.
_KEPT: Final = {
    "cookies": "cookie",
    "http_range": "range",
    "if_match": "if-match",
    "if_none_match": "if-none-match",
    "if_range": "if-range",
    "if_modified_since": "if-modified-since",
    "if_unmodified_since": "if-unmodified-since",
}


def kept_names(in_identity: Callable[[str], bool]) -> frozenset[str]:
    """The properties that `lend` has to make a request look up anew, given which headers are in the identity."""
    return frozenset([*_SAYS, *[name for name, header in _KEPT.items() if not in_identity(header)]])


def lend(request: web.Request, headers: Any, state: Any, kept: frozenset[str]) -> None:
    """Put stand-ins in the place of the request's headers and mapping; `take_back` puts those back.

    `_headers` is behind `headers` and every property that is about one header (3.0), `_state` behind the mapping
    and the first thing `clone()` copies (3.0). Whatever was looked up before is forgotten, if it is in `kept`, to
    be looked up anew: what is there at the end was looked up in between.
    """
    headers.under = request._headers
    headers.notes = headers.peername = None
    request._headers = headers
    state.under = request._state
    state.headers = headers
    request._state = state
    cache = request._cache
    cache["headers"] = headers
    if (
        # What aiohttp has looked up itself before the first middleware (m: 0.04 us to see that, 0.2 for the rest).
        len(cache) != 4 or "rel_url" not in cache or "method" not in cache or "match_info" not in cache
    ) and not kept.isdisjoint(cache):
        _forget_looked_up(request, headers, kept)
    headers.looked_up = len(cache)


def _forget_looked_up(request: web.BaseRequest, headers: Any, kept: frozenset[str]) -> None:
    cache = request._cache
    for name in kept.intersection(cache):
        value = cache.pop(name)
        if name in _SAYS and type(headers.under) is type(headers):
            # Looked up between two doors: the one further out has to know.
            headers.under.note(_SAYS[name])
        if name == "remote" and value != remote_of(request):
            # Set by a `clone()`. It would be found by itself where `remote` looks for the address (3.0).
            if type(value) is str:
                headers.peername = (request._transport_peername,)
                request._transport_peername = (value, 0)
            else:
                headers.note(_SAYS[name])
                cache[name] = value


def take_back(request: web.BaseRequest, headers: Any) -> None:
    """Put back what `lend` took away, and note what was looked up otherwise than in the headers."""
    request._headers = under = headers.under
    state: Any = request._state
    request._state = state.under
    cache = request._cache
    cache["headers"] = under
    if len(cache) != headers.looked_up:
        for name in _SAYS.keys() & cache.keys():
            headers.note(_SAYS[name])
            if type(under) is type(headers):
                under.note(_SAYS[name])
    if headers.peername is not None:
        cache["remote"] = remote_of(request)
        (request._transport_peername,) = headers.peername


def remote_of(request: web.BaseRequest) -> str | None:
    """What `request.remote` says, without keeping that it was looked up."""
    if "remote" in request._cache:
        remote: str | None = request._cache["remote"]
        return remote
    peername: Any = request._transport_peername
    if peername is None:
        return None
    return str(peername[0] if isinstance(peername, (list, tuple)) else peername)


def lent(request: web.BaseRequest) -> tuple[Any, Any]:
    """The headers and the mapping's storage as the request has them now."""
    return request._headers, request._state


def received_headers(request: web.BaseRequest) -> CIMultiDictProxy[str]:
    """The headers as they came in, or as `clone()` was given them, whatever is lent."""
    return request._message.headers


def received_pairs(request: web.BaseRequest) -> tuple[tuple[bytes, bytes], ...]:
    """The same as bytes, without keeping that they were looked up."""
    return request._message.raw_headers


def mapping_of(request: web.BaseRequest) -> dict[Any, Any]:
    """A copy of the request mapping, whatever is lent."""
    state: Any = request._state
    while type(state) is not dict and hasattr(state, "under"):
        state = state.under
    return dict(state) if state else _EMPTY


def host_of(request: web.BaseRequest) -> Any:
    """What `request.host` says, or stands for: without a Host header, the address that was connected to.

    3.12 asks `socket.getfqdn()` there, which blocks the loop and is the same for all; `_transport_sockname` is
    3.14's.
    """
    if "host" in request._cache or hdrs.HOST in request.headers:
        return request.host
    return getattr(request, "_transport_sockname", None)


def route_of(request: web.Request) -> Hashable:
    """Which handler a request goes to, and with what from its path.

    Not a matter of the target alone: a resource may look at headers, and a `clone()` keeps the `match_info`.
    """
    match_info = request.match_info
    refused = match_info.http_exception
    if refused is None:
        return match_info.route, tuple(sorted(match_info.items()))
    # The route of a request that matched none is made anew each time.
    return UNROUTED, refused.status, tuple(sorted(getattr(refused, "allowed_methods", ())))


def same_head(one: web.Request, other: web.Request) -> bool:
    """Whether two requests for one target certainly agree in route, version, scheme, host and every header.

    False says nothing. `_message` holds what was received; `_cache` (3.0) has an entry for scheme or host where
    a `clone()` or an absolute target set it, or where somebody looked.
    """
    received, other_received = one._message, other._message
    if received.raw_headers != other_received.raw_headers or received.version != other_received.version:
        return False
    match, other_match = one.match_info, other.match_info
    if match.route is not other_match.route or match != other_match:
        return False
    if one._transport_sslcontext is not other._transport_sslcontext:
        return False
    cache, other_cache = one._cache, other._cache
    if "host" in cache or "host" in other_cache or "scheme" in cache or "scheme" in other_cache:
        return host_of(one) == host_of(other) and one.scheme == other.scheme
    return hdrs.HOST in received.headers


def can_answer(request: web.BaseRequest) -> bool:
    """Whether the request's connection is open and its server not shutting down.

    `RequestHandler._close` (3.0) is set by `Server.pre_shutdown()`, the first step of an orderly shutdown,
    `_force_close` (3.0) by its last one and by a lost connection; there is no public way to learn of either.
    """
    return connection_is_open(request) and not is_shutting_down(request)


def connection_is_open(request: web.BaseRequest) -> bool:
    """Whether the client can still be written to."""
    transport = request.transport
    return transport is not None and not transport.is_closing()


def is_shutting_down(request: web.BaseRequest) -> bool:
    """Whether the server has begun to shut down (see `can_answer`)."""
    protocol = request.protocol
    return bool(protocol._close or protocol._force_close)


def client_certificate(request: web.BaseRequest) -> bytes | None:
    """The DER bytes of the TLS client certificate, or None where the client showed none."""
    ssl_object = request.get_extra_info("ssl_object")
    certificate: bytes | None = None if ssl_object is None else ssl_object.getpeercert(binary_form=True)
    return certificate


def before_answer(request: web.BaseRequest, callback: Callable[[int], None]) -> None:
    """Call `callback(status)` before each part of the answer to this request is sent, whoever makes that answer.

    Every answer, also one that an outer middleware replaces or that aiohttp makes of an exception, passes
    `write_headers`, `write` and `write_eof` of the request's own writer (public methods of
    `AbstractStreamWriter`; the writer is made anew for each request and shared by its clones). The status
    stands in the status line only. The last call is before the end of the answer: a handler that streams may
    write and commit in turns.
    """
    writer = request.writer
    original_headers, original_write, original_eof = writer.write_headers, writer.write, writer.write_eof
    status = 0

    async def write_headers(status_line: str, headers: CIMultiDict[str]) -> None:
        nonlocal status
        status = int(status_line.split(" ", 2)[1])
        callback(status)
        await original_headers(status_line, headers)

    async def write(*args: Any, **kwargs: Any) -> None:
        if status:  # and not the interim answer to Expect
            callback(status)
        await original_write(*args, **kwargs)

    async def write_eof(*args: Any, **kwargs: Any) -> None:
        if status:
            callback(status)
        # Not needed again, and with them goes the reference cycle.
        for name in ("write_headers", "write", "write_eof"):
            writer.__dict__.pop(name, None)
        await original_eof(*args, **kwargs)

    writer.__dict__.update(write_headers=write_headers, write=write, write_eof=write_eof)


# What a response object keeps for itself (3.12): its connection, what was sent, and caches of its headers.
_OF_ONE_SENDING = frozenset({
    "_headers", "_state", "_cookies", "_req", "_payload_writer", "_eof_sent", "_body_length",
    "_must_be_empty_body", "_compressed_body", "_content_type", "_content_dict", "_stored_content_type",
    "_do_start_compression", "__notes__",
})  # fmt: skip


def fields_of_any_sending(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of a response's attributes, those that a copy of it shares with it: all but those of one sending."""
    return {name: own(value) for name, value in fields.items() if name not in _OF_ONE_SENDING}


def containers_in(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the fields that are plain containers."""
    return tuple(name for name, value in fields.items() if type(value) in _CONTAINERS)


def own(value: Any) -> Any:
    """The value, or a copy of it if it is a plain container that its holder may change."""
    return value.copy() if type(value) in _CONTAINERS else value


def sets_cookies(response: web.StreamResponse) -> bool:
    """Whether there are cookies to be set. (`response.cookies` makes an empty jar where there was none.)"""
    return bool(response._cookies)


def copied_jar(jar: SimpleCookie) -> SimpleCookie:
    """A jar with the same cookies. (`jar.copy()` is a plain dict, with the same morsels.)"""
    twin = SimpleCookie()
    for name, morsel in jar.items():
        dict.__setitem__(twin, name, morsel.copy())
    return twin


def rebuild(
    cls: type[web.StreamResponse],
    fields: Mapping[str, Any],
    containers: Iterable[str],
    headers: CIMultiDict[str],
    state: Mapping[Any, Any],
    cookies: SimpleCookie | None,
) -> web.StreamResponse:
    """A response object of its own, of the given class, without running its `__init__` (3.12 attributes).

    `containers` are the fields that each copy needs a copy of.
    """
    response = cls.__new__(cls)
    attributes = response.__dict__
    attributes.update(fields)
    for name in containers:
        attributes[name] = fields[name].copy()
    attributes["_headers"] = headers.copy()
    attributes["_state"] = dict(state)
    if cookies is not None:
        attributes["_cookies"] = copied_jar(cookies)
    return response


def response_state(response: web.StreamResponse) -> dict[Any, Any]:
    """The response mapping (`response["key"]`), copied. Its `items()` is written in Python."""
    return response._state.copy()


_CONTAINERS: Final = frozenset({list, dict, set})
_SENDING: Final = ("prepare", "_start", "write", "write_eof")


def sends_its_body_itself(response: web.StreamResponse) -> bool:
    """Whether a response, or its class, replaces how aiohttp sends a body (see `class_sends_its_body_itself`)."""
    if class_sends_its_body_itself(type(response)):
        return True
    attributes = response.__dict__
    return "prepare" in attributes or "_start" in attributes or "write" in attributes or "write_eof" in attributes


@functools.lru_cache(maxsize=256)
def class_sends_its_body_itself(cls: type[web.StreamResponse]) -> bool:
    """Whether a response class replaces how aiohttp sends a body, so that nobody knows what a copy would send.

    `_start` (3.0) is where `Response` computes its length.
    """
    if issubclass(cls, web.FileResponse):
        base: type[web.StreamResponse] = web.FileResponse
    elif issubclass(cls, web.Response):
        base = web.Response
    else:
        return cls is not web.StreamResponse
    if any(getattr(cls, name) is not getattr(base, name) for name in _SENDING):
        return True
    # Attributes outside of __dict__ would not be copied.
    return any("__slots__" in vars(parent) for parent in cls.__mro__ if issubclass(parent, base) and parent is not base)


# Payloads that can be written many times, by what they hold (3.12); `_value` is what they were made of.
_REPEATABLE = (payload.BytesPayload, payload.StringPayload, payload.JsonPayload)


def repeatable_body(body: Any) -> tuple[bool, Any]:
    """Whether a response body can be sent many times, and the immutable form of it to share."""
    if body is None or type(body) is bytes:
        return True, body
    if isinstance(body, (bytes, bytearray)):
        return True, bytes(body)
    if type(body) in _REPEATABLE:
        value = body._value
        if type(value) is bytes:
            return True, body
        if isinstance(value, (bytes, bytearray, memoryview)):
            return True, payload.BytesPayload(bytes(value), headers=body.headers)
    return False, None


def compresses_whole_body(response: web.StreamResponse) -> bool:
    """Whether aiohttp would compress this response's bytes in one go, before the head is sent.

    `_do_start_compression` (3.0) is that step; it is given the coding that was negotiated.
    """
    return (
        isinstance(response, web.Response)
        and type(response)._do_start_compression is web.Response._do_start_compression
        and not response.chunked
        and isinstance(response.body, bytes)
    )


async def compressed(response: web.Response, coding: web.ContentCoding) -> bytes:
    """The compressed bytes of a response's body, made by aiohttp's own code, with its executor settings."""
    scratch = web.Response(body=response.body)
    scratch._zlib_executor = response._zlib_executor
    scratch._zlib_executor_size = response._zlib_executor_size
    scratch._compression_strategy = response._compression_strategy
    await scratch._do_start_compression(coding)
    assert scratch._compressed_body is not None
    return scratch._compressed_body


def take_compressed_from(
    response: web.StreamResponse, body: bytes, source: Callable[[web.Response, web.ContentCoding], Any]
) -> None:
    """Let this response ask `source` for the compressed body, unless its body is another one by then."""
    reference = weakref.ref(response)

    async def start_compression(coding: web.ContentCoding) -> None:
        this = reference()
        assert isinstance(this, web.Response)
        del this.__dict__["_do_start_compression"]
        if coding is web.ContentCoding.identity or this.body is not body or this.chunked:
            await this._do_start_compression(coding)
            return
        this._compressed_body = result = await source(this, coding)
        this.headers[hdrs.CONTENT_ENCODING] = coding.value
        this.headers[hdrs.CONTENT_LENGTH] = str(len(result))

    response.__dict__["_do_start_compression"] = start_compression
