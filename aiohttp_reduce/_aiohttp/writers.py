"""The writer of a request: what stands in for it while a handler runs, and what we ask of it beyond what is public."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.compression_utils import ZLibCompressor
from aiohttp.helpers import must_be_empty_body, rfc822_formatted_time

# A chunk that is larger is compressed in a thread, as `ZLibCompressor.compress` does (3.12).
_MAX_SYNC_COMPRESSION: Final = 4096
_PREPARE_HOOK: Final = "_prepare_hook"


class LentWriter:
    """Stands in for a request's writer while its handler runs; tells when a response is prepared with it.

    `StreamResponse._start` (3.0) takes `request._payload_writer`, works out the framing on it (`length`,
    `enable_chunking`, `enable_compression`), awaits `request._prepare_hook(response)`, which sends the signals, and
    then writes the head. With the first of these we put ourselves in the place of the hook: so it is found out
    which response it is, before the signals, and nothing is done for a request whose handler prepares nothing
    (m: making this object costs 0.15 us).

    `run` is whose handler it is: `run.prepares(response, writer)` is called there. `to` is where what is written goes
    from then on, `coding` what compression was asked for, and `chunks` whether chunked coding was.
    """

    to: Any = None
    coding: tuple[str, int | None] | None = None
    chunks = False
    _begun = False
    _hook_before: Any = None
    run: Any
    real: Any

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self.real.__class__

    @property
    def length(self) -> int | None:
        length: int | None = self.real.length
        return length

    @length.setter
    def length(self, length: int | None) -> None:
        self._begin()
        self.real.length = length

    def enable_chunking(self) -> None:
        self._begin()
        self.chunks = True
        self.real.enable_chunking()

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        self._begin()
        self.coding = (encoding, strategy)

    async def write_headers(self, status_line: str, headers: Any) -> None:
        if self.to is None:
            # Prepared with a clone of the request: nobody can tell what the handler did to that.
            self._begun = True
            self.run.prepares(None, self)
        await self.to.write_headers(status_line, headers)

    def write(self, *args: Any, **kwargs: Any) -> Any:
        return (self.to or self.real).write(*args, **kwargs)

    def write_eof(self, *args: Any, **kwargs: Any) -> Any:
        return (self.to or self.real).write_eof(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.to or self.real, name)

    def straight_through(self) -> None:
        """Let everything go to the request's own writer from now on."""
        self.to = self.real
        if self.coding is not None:
            self.real.enable_compression(*self.coding)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            attributes = vars(self.run.request)
            # Another door's, where this one stands inside of it or outside.
            self._hook_before = attributes.get(_PREPARE_HOOK)
            attributes[_PREPARE_HOOK] = self._prepare_hook

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        request = self.run.request
        self.unhook()
        self.run.prepares(response, self)
        await request._prepare_hook(response)

    def unhook(self) -> None:
        """Take ourselves out of the hook's place, if we are there."""
        attributes = vars(self.run.request)
        if self._begun and attributes.get(_PREPARE_HOOK) == self._prepare_hook:
            if self._hook_before is None:
                del attributes[_PREPARE_HOOK]
            else:
                attributes[_PREPARE_HOOK] = self._hook_before
            self._hook_before = None


def before_head(request: web.BaseRequest, callback: Callable[[web.StreamResponse], None]) -> Callable[[], None]:
    """Call `callback` with the response that is prepared for this request, before signals see it.

    Returns what takes that back.
    """
    attributes = vars(request)
    before = attributes.get(_PREPARE_HOOK)

    async def hook(response: web.StreamResponse) -> None:
        undo()
        callback(response)
        await request._prepare_hook(response)

    def undo() -> None:
        if attributes.get(_PREPARE_HOOK) is hook:
            if before is None:
                del attributes[_PREPARE_HOOK]
            else:
                attributes[_PREPARE_HOOK] = before

    attributes[_PREPARE_HOOK] = hook
    return undo


def undo_preparing(
    response: web.StreamResponse, request: web.BaseRequest, lent: LentWriter, headers: Any, fields: dict[str, Any]
) -> None:
    """Take out of a copy of a response's headers and attributes what `_prepare_headers` (3.0) put in for one request.

    What stands there as aiohttp would have put it in counts as put in: each follower's own preparing does it again.
    """
    for line in list(response.cookies.values()):
        del line
        cookies = headers.popall(hdrs.SET_COOKIE)
        headers.extend((hdrs.SET_COOKIE, cookie) for cookie in cookies[:-1])
    if lent.chunks:
        headers.popall(hdrs.TRANSFER_ENCODING, None)
    if lent.coding is not None:
        headers.popall(hdrs.CONTENT_ENCODING, None)
    if headers.get(hdrs.DATE) == rfc822_formatted_time():
        del headers[hdrs.DATE]
    keeps_alive = response._keep_alive
    if headers.get(hdrs.CONNECTION) == ("keep-alive" if keeps_alive else "close"):
        del headers[hdrs.CONNECTION]
    if bool(keeps_alive) == bool(request.keep_alive):
        fields.pop("_keep_alive", None)
    # Looked up by aiohttp, and not by the handler.
    request._cache.pop("keep_alive", None)


def is_compressed(response: web.StreamResponse) -> bool:
    """Whether a response is whole already, in the coding of one request (`_compressed_body`, 3.0)."""
    return getattr(response, "_compressed_body", None) is not None


def negotiates(response: web.StreamResponse) -> bool:
    """Whether preparing a response looks at Accept-Encoding (`_compression_force`, 3.0)."""
    return response.compression and response._compression_force is None


def take_coding(response: web.StreamResponse, callback: Callable[[str, int | None], None]) -> None:
    """Let a response negotiate its coding and say so in its headers, but leave the compressing to others."""

    async def start_compression(coding: web.ContentCoding) -> None:
        response.__dict__.pop("_do_start_compression", None)
        if coding is not web.ContentCoding.identity:
            response.headers[hdrs.CONTENT_ENCODING] = coding.value
            response.headers.popall(hdrs.CONTENT_LENGTH, None)
            callback(coding.value, response._compression_strategy)

    response.__dict__["_do_start_compression"] = start_compression


class Compressor:
    """What aiohttp's own writer would make of the same chunks (`ZLibCompressor`, 3.12)."""

    __slots__ = ("_compressor",)

    def __init__(self, encoding: str, strategy: int | None) -> None:
        self._compressor = ZLibCompressor(encoding=encoding, strategy=strategy)

    def compress_now(self, chunk: bytes) -> bytes | None:
        """The next compressed bytes; None where it takes too long to do it in the event loop."""
        return self._compressor.compress_sync(chunk) if len(chunk) <= _MAX_SYNC_COMPRESSION else None

    async def compress(self, chunk: bytes) -> bytes:
        """The next compressed bytes. Must not be cancelled."""
        return await self._compressor.compress(chunk)

    def flush(self) -> bytes:
        """The last compressed bytes."""
        return self._compressor.flush()


def writer_of(response: web.StreamResponse) -> AbstractStreamWriter | None:
    """The writer that a response was prepared with (3.0)."""
    return response._payload_writer


def has_no_body(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    """Whether the answer to this request ends with its head, whatever is in the response (RFC 9112, 6.3)."""
    return must_be_empty_body(request.method, response.status)


def drain_waiter(request: web.BaseRequest) -> "asyncio.Future[None] | None":
    """What is done once the client has read enough for more to be written; None if more can be written now.

    It is shared by all who wait on this connection (`BaseProtocol._drain_helper`, 3.0): it must not be cancelled.
    """
    protocol = request.protocol
    if protocol.transport is None or not protocol._paused:
        return None
    waiter = protocol._drain_waiter
    if waiter is None:
        waiter = protocol._drain_waiter = protocol._loop.create_future()
    return waiter


def unsent(request: web.BaseRequest) -> int:
    """How many bytes wait here until the client reads; 0 for a closed connection."""
    transport = request.transport
    return 0 if transport is None else transport.get_write_buffer_size()


def cancels_handlers(request: web.BaseRequest) -> bool:
    """Whether the server cancels the handler of a client that leaves (`handler_cancellation`, 3.9)."""
    manager = request.protocol._manager
    return manager is None or bool(manager.handler_cancellation)


def abort(request: web.BaseRequest, *, ends_with_connection: bool) -> None:
    """Break a connection off, so that what was sent on it is not taken for the whole.

    Where the end of the body is the end of the connection (RFC 9112, 6.3, case 8), only a reset says so.
    """
    transport = request.transport
    if transport is None:
        return
    if ends_with_connection:
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
