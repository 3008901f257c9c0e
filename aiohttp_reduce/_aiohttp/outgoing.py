"""What we ask of an outgoing request, and of the handler that sends it, beyond what aiohttp promises."""

import asyncio
from collections.abc import Callable, Hashable
from operator import attrgetter, itemgetter
from types import CellType, CodeType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aiohttp import ClientRequest, ClientResponse, ClientSession, ClientTimeout
from aiohttp.helpers import TimerNoop
from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    from aiohttp.tracing import Trace

NO_TIMER: Final = TimerNoop()
"""Stands for a caller's timer (`TimerContext`, 3.0) where what it timed belongs to several callers."""

# The innermost handler that a client middleware is given, and those of its closure cells that are not options of
# how the response is read (3.12).
_INNERMOST: Final = "_connect_and_send_request"
_TIMEOUT: Final = "real_timeout"
_NO_OPTIONS: Final = frozenset({"self", "timer", "traces", _TIMEOUT})
# Those that must be there; another one that a later aiohttp adds is compared too.
_OPTIONS: Final = frozenset(
    {"read_until_eof", "auto_decompress", "read_bufsize", "max_line_size", "max_field_size"}
)  # fmt: skip


class _Innermost(NamedTuple):
    """The code of aiohttp's own handler, and where the cells are in its closure (two options at least)."""

    code: CodeType | None
    options: Callable[[Any], tuple[CellType, ...]]
    timeout: int


# The one that was met last; there is but one in a process, unless somebody patches aiohttp.
_latest = _Innermost(None, tuple, 0)


def is_innermost(handler: Any) -> bool:
    """Whether this is aiohttp's own handler, the options of whose call can be read.

    They are closure cells of it (`ClientSession._request`, 3.12), and stand nowhere else. Any other function is
    another middleware's, further in than ours.
    """
    code = getattr(handler, "__code__", None)
    return code is not None and (code is _latest.code or _learn(handler, code))


def _learn(handler: Any, code: CodeType) -> bool:
    global _latest
    names = code.co_freevars
    if (
        code.co_name != _INNERMOST
        or handler.__module__ != "aiohttp.client"
        or not _OPTIONS.issubset(names)
        or not _NO_OPTIONS.issubset(names)
    ):
        return False
    options = [index for index, name in enumerate(names) if name not in _NO_OPTIONS]
    _latest = _Innermost(code, itemgetter(*options), names.index(_TIMEOUT))
    return True


def _cells_of(handler: Any) -> _Innermost:
    if handler.__code__ is not _latest.code:
        _learn(handler, handler.__code__)
    return _latest


def timeout_of(handler: Any) -> ClientTimeout:
    """The timeouts of the call that an innermost handler sends."""
    timeout: ClientTimeout = handler.__closure__[_cells_of(handler).timeout].cell_contents
    return timeout


def reading_options_of(handler: Any) -> tuple[Any, ...]:
    """The options of the call that decide how the response is read, sock_read among them."""
    values = [cell.cell_contents for cell in _cells_of(handler).options(handler.__closure__)]
    return timeout_of(handler).sock_read, *values


def same_reading(handler: Any, other: Any) -> bool:
    """Whether two calls read their responses with the same options; as comparing the above, in a third of the time.

    Cells compare by what they hold.
    """
    code = handler.__code__
    if code is not other.__code__:
        return reading_options_of(handler) == reading_options_of(other)
    _, pick, timeout = _cells_of(handler)
    closure, other_closure = handler.__closure__, other.__closure__
    if pick(closure) != pick(other_closure):
        return False
    its, others = closure[timeout].cell_contents, other_closure[timeout].cell_contents
    return its is others or its.sock_read == others.sock_read


# What says where a request goes and how. (One call in C: 0.15 us where the same in Python took 0.4.)
sending_of = attrgetter("__class__", "_session", "url", "version", "proxy", "_ssl", "server_hostname")


def ordinary_sending_of(request: ClientRequest) -> Any:
    """What `sending_of` gives for all requests that are sent like this one, if they have the same method and headers.

    None where that says too little, as it does about proxies and TLS options.
    """
    sending = sending_of(request)
    if sending[0] is not ClientRequest or request._ssl is not True or sending[4] is not None or sending[6] is not None:
        return None
    return sending


def is_plain(request: ClientRequest) -> bool:
    """Whether a request has nothing of what keeps it from being reduced; in one call, for the sake of most.

    `has_body`, `awaits_continue`, `has_upload_tracker` and `sends_in_its_own_way` say what it has, one by one.
    """
    return (
        request._body is None
        and not request.chunked
        and request._continue is None
        and type(request) is ClientRequest
        and getattr(request, "_upload_tracker", None) is None
        and not _is_patched(request)
    )


def sends_in_its_own_way(request: ClientRequest) -> bool:
    """Whether the request's class, or the object itself, replaces how a request is sent, or whereto.

    A `request_class` may do anything in there, and nobody knows with what of its own.
    """
    cls = type(request)
    return _is_patched(request) or (
        cls is not ClientRequest and any(getattr(cls, name) is not getattr(ClientRequest, name) for name in _SENDING)
    )


def _is_patched(request: ClientRequest) -> bool:
    # The others are properties, which an object's own attributes do not replace.
    return "send" in request.__dict__ or "write_bytes" in request.__dict__


_SENDING: Final = ("send", "write_bytes", "connection_key", "is_ssl", "ssl", "host", "port")


def session_of(request: ClientRequest) -> ClientSession:
    """The session of a request. (`ClientRequest.session` is 3.12.3's.)"""
    return request._session


def traces_of(request: ClientRequest) -> "list[Trace]":
    """The caller's traces (3.0)."""
    return request._traces


def awaits_continue(request: ClientRequest) -> bool:
    """Whether the request waits for an interim answer: `_continue` is behind `expect100` and the Expect header."""
    return request._continue is not None


def has_upload_tracker(request: ClientRequest) -> bool:
    """Whether the caller watches the upload (`_upload_tracker`, 3.14)."""
    return getattr(request, "_upload_tracker", None) is not None


def has_body(request: ClientRequest) -> bool:
    """Whether the request has a body, or is going to write one in chunks. (`body` is b"" without; 3.12.)"""
    return bool(request.chunked) or request._body is not None


def way_of(request: ClientRequest) -> Hashable:
    """Whereto and how the request goes, beside its URL: proxy and TLS (`_ssl`: 3.0). None for the ordinary way."""
    if request.proxy is None and request._ssl is True and request.server_hostname is None:
        return None
    proxy_headers = request.proxy_headers
    return (
        request.proxy,
        request.proxy_auth,
        None if proxy_headers is None else tuple(proxy_headers.items()),
        # By identity: contexts and fingerprints define no equality.
        (type(request._ssl), request._ssl),
        request.server_hostname,
    )


def for_a_flight(request: ClientRequest) -> ClientRequest:
    """A copy of the request that sends the same, and is nobody's: with headers of its own and without a timer.

    `send()` adds to the headers, and so may a middleware further out while others wait; `_timer` (3.0) is
    entered by whoever reads the head.
    """
    cls = type(request)
    copy: ClientRequest = cls.__new__(cls)
    attributes = copy.__dict__
    attributes.update(request.__dict__)
    attributes["headers"] = request.headers.copy()
    attributes["_timer"] = NO_TIMER
    attributes["response"] = None  # a request that is sent again, by a middleware that retries, has one
    if request.proxy_headers is not None:
        attributes["proxy_headers"] = CIMultiDict(request.proxy_headers)  # the connector adds to them
    if not _has_plain_start(request):
        attributes["response_class"] = ClientResponse
    return copy


def _has_plain_start(request: ClientRequest) -> bool:
    """Whether the caller's response class starts as aiohttp's own: another may read the body before anybody has it."""
    cls = request.response_class
    return cls is ClientResponse or cls.start is ClientResponse.start


def connection_closed(response: ClientResponse) -> "asyncio.Future[None] | None":
    """Done once the response's connection is lost, for whatever reason; None if it has none any more.

    (`ResponseHandler.closed`, 3.12.) Nobody else tells a reader whose connection its own session closed.
    """
    protocol = response.connection and response.connection.protocol
    return None if protocol is None else protocol.closed


def was_sent(request: ClientRequest) -> bool:
    """Whether a connection was made and the request written: `send()` then sets `response` (3.0)."""
    return request.response is not None


def take_timer_from(response: ClientResponse) -> None:
    """Let the body be read by nobody's clock.

    The innermost handler gives the caller's timer to the parser (closure cell `timer`), and that to the reader
    that it makes (`StreamReader._timer`, 3.0).
    """
    content = response.content
    if hasattr(content, "_timer"):  # the empty reader, which all share, has none
        content._timer = NO_TIMER


def hand_over(response: ClientResponse, request: ClientRequest, *, is_own: bool) -> None:
    """Make a genuine response this caller's: read by its clock, watched by its traces, as if it had sent it itself.

    `is_own`: it is the one whose request was copied to be sent.
    """
    request.response = response  # type: ignore[assignment]
    response._timer = request._timer
    content = response.content
    if not content.is_eof():
        content._timer = request._timer
    if not is_own:
        response._traces = request._traces
        response._real_url = request.original_url
        response._request_info = request.request_info


def absolute_url(session: ClientSession, url: str | URL) -> URL:
    """The URL that a call with `url` goes to (`_build_url`, 3.0). Raises ValueError where it is none."""
    return session._build_url(url)


def middlewares_of(session: ClientSession) -> tuple[Any, ...]:
    """The session's own client middlewares (`_middlewares`, 3.12); there is no public way to ask."""
    return tuple(getattr(session, "_middlewares", ()))
