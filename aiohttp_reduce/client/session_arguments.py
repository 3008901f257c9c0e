"""What `aiohttp.ClientSession` takes, for type checkers: its own signature says it, but cannot be referred to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from aiohttp import (
        BaseConnector,
        BasicAuth,
        ClientMiddlewareType,
        ClientRequest,
        ClientResponse,
        ClientTimeout,
        ClientWebSocketResponse,
        HttpVersion,
        TraceConfig,
    )
    from aiohttp.abc import AbstractCookieJar
    from aiohttp.typedefs import JSONBytesEncoder, JSONEncoder, LooseCookies, LooseHeaders, StrOrURL


class SessionArguments(TypedDict, total=False):
    """The keyword arguments of aiohttp 3.14's `ClientSession`."""

    connector: BaseConnector | None
    loop: asyncio.AbstractEventLoop | None
    cookies: LooseCookies | None
    headers: LooseHeaders | None
    proxy: StrOrURL | None
    proxy_auth: BasicAuth | None
    skip_auto_headers: Iterable[str] | None
    auth: BasicAuth | None
    json_serialize: JSONEncoder
    json_serialize_bytes: JSONBytesEncoder | None
    request_class: type[ClientRequest]
    response_class: type[ClientResponse]
    ws_response_class: type[ClientWebSocketResponse]
    version: HttpVersion
    cookie_jar: AbstractCookieJar | None
    connector_owner: bool
    raise_for_status: bool | Callable[[ClientResponse], Awaitable[None]]
    read_timeout: float
    conn_timeout: float | None
    timeout: ClientTimeout
    auto_decompress: bool
    trust_env: bool
    requote_redirect_url: bool
    trace_configs: list[TraceConfig] | None
    read_bufsize: int
    max_line_size: int
    max_field_size: int
    max_headers: int
    fallback_charset_resolver: Callable[[ClientResponse, bytes], str]
    middlewares: Sequence[ClientMiddlewareType]
    ssl_shutdown_timeout: Any
