"""What we ask of an incoming request, its connection and its writer, beyond what aiohttp promises."""

from collections.abc import Callable, Hashable
from types import MethodType
from typing import Any, Final

from aiohttp import StreamReader, hdrs, web
from aiohttp.web_urldispatcher import PrefixedSubAppResource, SystemRoute
from multidict import CIMultiDict, CIMultiDictProxy

from .writers import SETS_PLAINLY

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


def target_of(request: web.BaseRequest) -> str:
    """Under what a request's flight stands in the table: its raw target, with the method in front unless it is GET."""
    method, path = request._method, request._message.path
    return path if method == "GET" else f"{method} {path}"


def is_ordinary(request: web.Request, stats_path: str | None) -> bool:
    """Whether a request's route and application are such that nothing odd can be about requests that come this way.

    That is a route of a plain or dynamic resource, found by aiohttp's own routers (so that the request has the
    `USUALLY_LOOKED_UP` looked up), whose path is not `stats_path`.
    """
    match_info: Any = request._match_info
    resource: Any = match_info._route.resource
    if (
        not SETS_PLAINLY
        or not match_info._apps
        or type(request).__setattr__ is not object.__setattr__
        or type(resource) not in (web.PlainResource, web.DynamicResource)
        or any(type(app.router).resolve is not web.UrlDispatcher.resolve for app in match_info._apps)
    ):
        return False
    if stats_path is None:
        return True
    known = resource.get_info()
    pattern = known.get("pattern")
    return bool(known.get("path") != stats_path if pattern is None else pattern.fullmatch(stats_path) is None)


def finds_plainly(router: Any) -> bool:
    """Whether nothing but aiohttp's own code sees a request while its route is looked for.

    A resource of another class may do anything to the request, and so may a rule as for `add_domain`.
    """
    for resource in router.resources():
        if type(resource) is PrefixedSubAppResource:
            if not finds_plainly(resource._app.router):
                return False
        elif type(resource) not in (web.PlainResource, web.DynamicResource, web.StaticResource):
            return False
    return True


def is_first_middleware(request: web.Request, middleware: object) -> bool:
    """Whether nothing of the application's has seen such a request before this middleware, and it is there but once."""
    match_info: Any = request._match_info
    root, app = match_info._apps[0], match_info._current_app
    places = [place for place, other in enumerate(root.middlewares) if other is middleware]
    return (
        root is app
        and places == [0]
        and type(root)._make_request is web.Application._make_request
        and type(root)._handle is web.Application._handle
    )


def is_untouched(request: web.Request) -> bool:
    """Whether nothing is lent or hooked to a request whose cache is as large as that of the `USUALLY_LOOKED_UP`, and
    it is those that are there: not, say, the host that a `clone()` was given."""
    cache = request._cache
    return (
        request._headers is request._message.headers
        and "headers" in cache
        and "method" in cache
        and "rel_url" in cache
        and "match_info" in cache
        and type(request._prepare_hook) is MethodType
    )


def head_of(request: web.Request) -> Any:
    """What two GETs without TLS agree in if they certainly do in route, version, host and every header; None if that
    cannot be said so shortly.

    For requests that are as they were received. `same_head` says it of others.
    """
    message = request._message
    if hdrs.HOST not in message.headers:
        return None
    match_info: Any = request._match_info
    return message.raw_headers, message.version, match_info._route, match_info


def host_of(request: web.BaseRequest) -> Any:
    """What `request.host` says, or stands for: without a Host header, the address that was connected to.

    3.12 asks `socket.getfqdn()` there, which blocks the loop and is the same for all; `_transport_sockname` is
    3.14's.
    """
    if "host" in request._cache or hdrs.HOST in request._message.headers:
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


def has_own_attributes(request: web.BaseRequest) -> bool:
    """Whether an application gave the request object attributes of its own."""
    return not request.ATTRS.issuperset(vars(request)) and bool(own_attributes(request))


def own_attributes(request: web.BaseRequest) -> dict[str, Any]:
    """The attributes that an application gave the request object; `ATTRS` (3.0) are aiohttp's."""
    attributes = vars(request)
    # The hook is ours (`hook_heads`).
    return {name: attributes[name] for name in attributes.keys() - type(request).ATTRS if name != "_prepare_hook"}


def remote_of(request: web.BaseRequest) -> str | None:
    """What `request.remote` says, without keeping that it was looked up."""
    if "remote" in request._cache:
        remote: str | None = request._cache["remote"]
        return remote
    peername: Any = request._transport_peername
    if peername is None:
        return None
    return str(peername[0] if isinstance(peername, (list, tuple)) else peername)


def received_headers(request: web.BaseRequest) -> CIMultiDictProxy[str]:
    """The headers as they came in, or as `clone()` was given them, whatever is lent."""
    return request._message.headers


def received_pairs(request: web.BaseRequest) -> tuple[tuple[bytes, bytes], ...]:
    """The same as bytes, without keeping that they were looked up."""
    return request._message.raw_headers
