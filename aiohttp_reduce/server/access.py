"""Who may see the stats page: by default only somebody on this machine who came by no proxy."""

import inspect
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

logger = logging.getLogger("aiohttp_reduce")

Access = Callable[[web.Request], bool | Awaitable[bool]]
"""Says who may see the page."""

_PROXY_HEADERS: Final = frozenset(
    {"forwarded", "x-real-ip", "via", "x-client-ip", "true-client-ip", "cf-connecting-ip", "fly-client-ip"}
)
_PROXY_PREFIX: Final = "x-forwarded-"


async def asks_for_stats(request: web.Request, path: str | None, access: Access) -> bool:
    """Whether a request is for the page at `path`, and may see it."""
    if request.method not in {"GET", "HEAD"} or request.raw_path.split("?", 1)[0] != path:
        return False
    try:
        allowed = access(request)
        return bool(await allowed if inspect.isawaitable(allowed) else allowed)
    except Exception:
        logger.exception("stats_access raised for %r; refused", request)
        return False


def local_only(request: web.BaseRequest) -> bool:
    """Whether the peer is a loopback address, the Host is loopback too, and no header tells of a proxy.

    This is the default of `stats_access`; a function of your own may call it.

    The Host is compared so that a foreign web page cannot reach it under a name that it resolves to
    127.0.0.1. HTTP/1.0 is refused: it is what nginx speaks by default, with a Host of its own and no header that
    tells of it. Headers that tell of a proxy are Forwarded, `X-Forwarded-*`, X-Real-IP, Via, and those of the
    client's address (X-Client-IP, True-Client-IP, CF-Connecting-IP, Fly-Client-IP).
    **A proxy on this machine that adds none of them and speaks HTTP/1.1 with a loopback Host cannot be told from a
    local user.**
    """
    if request.version < HttpVersion11:
        return False
    peername = request.get_extra_info("peername")
    if not isinstance(peername, Sequence) or isinstance(peername, str) or not _is_loopback(str(peername[0])):
        return False
    if request.remote is None or not _is_loopback(request.remote):
        return False
    for name in request.headers:
        lowered = name.lower()
        if lowered in _PROXY_HEADERS or lowered.startswith(_PROXY_PREFIX):
            return False
    hosts = request.headers.getall(hdrs.HOST, ())
    return len(hosts) == 1 and request.host == hosts[0] and _is_loopback_host(hosts[0])


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (parsed if mapped is None else mapped).is_loopback


def _is_loopback_host(host: str) -> bool:
    if host.startswith("["):
        address, _, port = host[1:].partition("]")
        return (not port or (port.startswith(":") and port[1:].isdecimal())) and _is_loopback(address)
    name, colon, port = host.partition(":")
    if colon and not port.isdecimal():
        return False
    return name.lower() == "localhost" or _is_loopback(name)
