"""The writer of a request: what stands in for it while a handler runs, and what we ask of it beyond what is public."""

import asyncio
import copy
import socket
import struct
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from types import MethodType
from typing import Any, Final, Protocol

from aiohttp import ClientConnectionResetError, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.compression_utils import ZLibCompressor
from aiohttp.helpers import must_be_empty_body, rfc822_formatted_time
from aiohttp.http_writer import SKIP_WRITELINES, StreamWriter
from aiohttp.web_protocol import RequestHandler

try:
    import fcntl
    import termios
except ImportError:  # not there on Windows
    fcntl = termios = None  # type: ignore[assignment]

# Larger bodies and chunks are handed to a connection in pieces of this size, so that it keeps no more than it has to.
PIECE: Final = 0x40000

# A chunk that is larger is compressed in a thread, as `ZLibCompressor.compress` does (3.12).
_MAX_SYNC_COMPRESSION: Final = 4096
# As they stand in a Content-Encoding that aiohttp has negotiated.
_CODINGS: Final = frozenset(coding.value for coding in web.ContentCoding)
# So much is written before it is looked whether the client reads (`StreamWriter.write`, 3.12).
_LIMIT: Final = 0x10000
_HOOK: Final = "_prepare_hook"
# Whether a request's attributes are set without more ado. In debug mode (`PYTHONASYNCIODEBUG`), aiohttp warns of those
# that it does not know (`Request.__setattr__`, 3.0). To ask for `__dict__` makes all later looks at the request slower,
# aiohttp's own included (m: a request takes 1 us more).
SETS_PLAINLY: Final = web.Request.__setattr__ is object.__setattr__
_TOPMOST: Final = "_taken_over_by"
_WRITING: Final = ("write", "write_eof", "write_headers", "send_headers", "drain")


class Heads(Protocol):
    """Somebody who is told of the response that is prepared for a request, before the signals are sent."""

    def prepares(self, response: web.StreamResponse) -> None:
        """This response is being prepared: its headers are as they will be sent, but for what signals do to them."""
        ...

    def signals_begin(self, response: web.StreamResponse) -> Any:
        """All were told, the signals are sent now. What it returns is given to `signals_end`."""
        ...

    def signals_end(self, before: Any) -> None:
        """The signals were sent."""
        ...


def hook_heads(request: web.BaseRequest, heads: Heads) -> None:
    """Tell `heads` of the next response that is prepared for the request, after those who asked before.

    `StreamResponse._start` (3.0) works out framing, compression and headers and awaits `request._prepare_hook`, which
    sends the signals, before it writes the head. `heads` is to stand in the place of that method itself, so it has to
    be callable: see `tell_of_head`. `unhook_heads` takes it away again.
    """
    hook: Any = request._prepare_hook
    if type(hook) is not MethodType:
        heads = _Chain(request, hook, heads)
    if SETS_PLAINLY:
        request._prepare_hook = heads  # type: ignore[method-assign,assignment]
    else:
        request.__dict__[_HOOK] = heads


async def tell_of_head(request: web.BaseRequest, heads: Heads, response: web.StreamResponse) -> None:
    """What is to be done where `heads` is called in the place of the request's own hook."""
    del request._prepare_hook
    heads.prepares(response)
    before = heads.signals_begin(response)
    try:
        await request._prepare_hook(response)
    finally:
        heads.signals_end(before)


def unhook_heads(request: web.BaseRequest, heads: Heads) -> None:
    """Take `heads` out again, if the request has not told it of a response."""
    hook: Any = request._prepare_hook
    if hook is heads:
        del request._prepare_hook
    elif type(hook) is _Chain:
        request.__dict__[_HOOK] = hook.without(heads)


class _Chain:
    """Several who want to be told, those further out first: what they put into the writer has to be further down."""

    __slots__ = ("_inner", "_outer", "_request")

    def __init__(self, request: web.BaseRequest, outer: Heads, inner: Heads) -> None:
        self._request = request
        self._outer = outer
        self._inner = inner

    def __call__(self, response: web.StreamResponse) -> Awaitable[None]:
        return tell_of_head(self._request, self, response)

    def prepares(self, response: web.StreamResponse) -> None:
        self._outer.prepares(response)
        self._inner.prepares(response)

    def signals_begin(self, response: web.StreamResponse) -> Any:
        return self._outer.signals_begin(response), self._inner.signals_begin(response)

    def signals_end(self, before: Any) -> None:
        outer, inner = before
        self._inner.signals_end(inner)
        self._outer.signals_end(outer)

    def without(self, heads: Heads) -> Any:
        """What is left of the chain without this one."""
        if self._inner is heads:
            return self._outer
        if self._outer is heads:
            return self._inner
        if type(self._outer) is _Chain:
            self._outer = self._outer.without(heads)
        return self


class HeadMark:
    """Calls a function with the response that is prepared, until `undo()`."""

    __slots__ = ("_callback", "_request")

    def __init__(self, request: web.BaseRequest, callback: Callable[[web.StreamResponse], None]) -> None:
        self._request = request
        self._callback = callback
        hook_heads(request, self)

    def __call__(self, response: web.StreamResponse) -> Awaitable[None]:
        return tell_of_head(self._request, self, response)

    def prepares(self, response: web.StreamResponse) -> None:
        pass

    def signals_begin(self, response: web.StreamResponse) -> Any:
        self._callback(response)  # once what others are to have of it was taken

    def signals_end(self, before: Any) -> None:
        pass

    def undo(self) -> None:
        """Do not call it any more."""
        unhook_heads(self._request, self)


def before_any_head(request: web.BaseRequest, callback: Callable[[], None]) -> None:
    """Call `callback` before a head is written for this request, or for any clone of it."""
    writer = request._payload_writer
    write_headers = writer.write_headers

    async def written(*args: Any, **kwargs: Any) -> None:
        if writer.__dict__.get("write_headers") is written:
            del writer.__dict__["write_headers"]
        callback()
        await write_headers(*args, **kwargs)

    writer.__dict__["write_headers"] = written


class Takeover:
    """Puts others in the place of a writer's methods, and keeps the writer's own.

    The writer is made anew for each request, and everything that is written to the client passes these five (public
    methods of `AbstractStreamWriter`); the object stays what it is for whoever has it.

    Several may be put one over the other, and be undone in any order: the writer knows the topmost, as `_TOPMOST`, and
    each the one that it was put over. The methods that it keeps are the writer's as they are without it.
    """

    __slots__ = (
        "_before",
        "_other",
        "_under",
        "drain",
        "send_headers",
        "write",
        "write_eof",
        "write_headers",
        "writer",
    )

    def __init__(self, writer: Any) -> None:
        self.writer = writer
        self.write = writer.write
        self.write_eof = writer.write_eof
        self.write_headers = writer.write_headers
        self.send_headers = writer.send_headers
        self.drain = writer.drain
        self._before: dict[str, Any] = {}
        self._other: Any = None
        self._under: Takeover | None = None

    def install(self, other: Any) -> None:
        """From now on `other` gets what is written."""
        attributes = self.writer.__dict__
        self._other = other
        self._before = {name: attributes.get(name) for name in _WRITING}
        self._under = attributes.get(_TOPMOST)
        attributes.update({name: getattr(other, name) for name in _WRITING})
        attributes[_TOPMOST] = self

    def undo(self) -> None:
        """The writer's own methods are back, or those of whoever was put over this."""
        attributes = self.writer.__dict__
        upper = attributes.get(_TOPMOST)
        if upper is self:
            for name, method in (*self._before.items(), (_TOPMOST, self._under)):
                if method is None:
                    attributes.pop(name, None)
                else:
                    attributes[name] = method
            return
        while upper is not None and upper._under is not self:
            upper = upper._under
        if upper is not None:
            upper._before, upper._under = self._before, self._under
            for name in _WRITING:
                setattr(upper, name, getattr(self, name))

    def further_out(self) -> Iterator[Any]:
        """All who get what passes this."""
        under = self._under
        while under is not None:
            yield under._other
            under = under._under


def all_over(writer: Any) -> Iterator[Any]:
    """All who stand in the place of a writer's methods, the topmost first."""
    topmost = writer.__dict__.get(_TOPMOST)
    if topmost is not None:
        yield topmost._other
        yield from topmost.further_out()


def take_compression(response: web.StreamResponse) -> "tuple[str, int | None, Compressor] | None":
    """The coding, the strategy and the compressor of a prepared response's writer, which does not compress any more.

    `_compress` is the writer's compressor, `_compression_strategy` what it was made with (3.12).
    """
    writer: Any = response._payload_writer
    compressor = None if writer._compress is None else Compressor(writer._compress)
    if compressor is None or not compressor.can_be_copied:
        return None
    writer._compress = None
    return response.headers[hdrs.CONTENT_ENCODING], response._compression_strategy, compressor


def is_compressed_further_in(response: web.StreamResponse) -> bool:
    """Whether what is written to a prepared response is compressed already, by a reader of a door further in."""
    writer: Any = response._payload_writer
    return bool(
        response.compression
        and response.headers.get(hdrs.CONTENT_ENCODING) in _CODINGS
        and writer._compress is None
        and "write" not in writer.__dict__  # it is not a door further out that has taken the compressor
    )


def is_writer(writer: Any) -> bool:
    """Whether this is a writer as a server's requests have them, and not something that somebody collects a body in."""
    return isinstance(writer, StreamWriter)


def writes_many(writer: Any) -> bool:
    """Whether `write_many` can be used: on a genuine writer, whose methods are its own, and a transport that does not
    copy what it is given at once.

    asyncio's do so, or cannot be trusted, on the Pythons that `SKIP_WRITELINES` (3.12) is about.
    """
    if type(writer) is not StreamWriter or "write" in writer.__dict__ or writer._compress is not None:
        return False
    return not SKIP_WRITELINES or type(writer.transport).__module__.startswith("uvloop")


async def write_in_pieces(write: Callable[[Any], Awaitable[None]], data: bytes) -> None:
    """Write many bytes piece by piece, each when the client has read the one before."""
    view = memoryview(data)
    for start in range(0, len(data), PIECE):
        await write(view[start : start + PIECE])


async def write_many(writer: Any, pieces: list[bytes]) -> None:
    """As `write` with each piece, with one call of the system for all.

    (m: 20 readers of a stream of 64 KiB pieces take 0.9 of the time.) `_writelines` (3.12) joins them on the Pythons
    that `SKIP_WRITELINES` is about, whatever the transport is.
    """
    size = sum(map(len, pieces))
    if writer.length is not None:
        if size > writer.length:
            for piece in pieces:
                await writer.write(piece)
            return
        writer.length -= size
    writer.send_headers()
    transport = writer.transport
    if transport is None or transport.is_closing():
        raise ClientConnectionResetError("Cannot write to closing transport")
    writer.buffer_size += size
    writer.output_size += size
    transport.writelines([b"%x\r\n" % size, *pieces, b"\r\n"] if writer.chunked else pieces)
    if writer.buffer_size > _LIMIT:
        writer.buffer_size = 0
        await writer.drain()


def is_delimited(writer: Any) -> bool:
    """Whether the end of a body is told otherwise than by that of the connection (RFC 9112, 6.3)."""
    return bool(getattr(writer, "chunked", False) or getattr(writer, "length", None) is not None)


def undo_preparing(
    response: web.StreamResponse, request: web.BaseRequest, headers: Any, fields: dict[str, Any]
) -> None:
    """Take out of a copy of a response's headers and attributes what `_prepare_headers` (3.0) put in for one request.

    What stands there as aiohttp would have put it in counts as put in: each follower's own preparing does it again.
    """
    if response._cookies:
        lines = headers.popall(hdrs.SET_COOKIE)  # those of the jar are the last ones
        headers.extend((hdrs.SET_COOKIE, line) for line in lines[: -len(response._cookies)])
    writer: Any = response._payload_writer
    if writer.chunked:
        headers.popall(hdrs.TRANSFER_ENCODING, None)
    if response.compression and headers.get(hdrs.CONTENT_ENCODING) in _CODINGS:
        headers.popall(hdrs.CONTENT_ENCODING, None)
    if headers.get(hdrs.DATE) == rfc822_formatted_time():
        del headers[hdrs.DATE]
    keeps_alive = response._keep_alive
    if headers.get(hdrs.CONNECTION) == ("keep-alive" if keeps_alive else "close"):
        del headers[hdrs.CONNECTION]
    if bool(keeps_alive) == bool(request.keep_alive):
        fields.pop("_keep_alive", None)
    forget_keep_alive(request)


def forget_keep_alive(request: web.BaseRequest) -> None:
    """Forget that `request.keep_alive` was looked up (`_cache`, 3.0), as aiohttp does to prepare a response."""
    request._cache.pop("keep_alive", None)


def negotiates(response: web.StreamResponse) -> bool:
    """Whether preparing a response looks at Accept-Encoding (`_compression_force`, 3.0)."""
    return response.compression and response._compression_force is None


def take_coding(response: web.StreamResponse, callback: Callable[[str, int | None], None]) -> None:
    """Let a response negotiate its coding and say so in its headers, but leave the compressing to others."""

    reference = weakref.ref(response)

    async def start_compression(coding: web.ContentCoding) -> None:
        this = reference()
        assert this is not None
        this.__dict__.pop("_do_start_compression", None)
        if coding is not web.ContentCoding.identity:
            this.headers[hdrs.CONTENT_ENCODING] = coding.value
            this.headers.popall(hdrs.CONTENT_LENGTH, None)
            callback(coding.value, this._compression_strategy)

    response.__dict__["_do_start_compression"] = start_compression


class Compressor:
    """What aiohttp's own writer would make of the same chunks (`ZLibCompressor`, 3.12)."""

    __slots__ = ("_compressor",)

    def __init__(self, compressor: ZLibCompressor) -> None:
        self._compressor = compressor

    @classmethod
    def of(cls, encoding: str, strategy: int | None) -> "Compressor":
        """One for this coding."""
        return cls(ZLibCompressor(encoding=encoding, strategy=strategy))

    def compress_now(self, chunk: bytes) -> bytes | None:
        """The next compressed bytes; None where it takes too long to do it in the event loop."""
        return self._compressor.compress_sync(chunk) if len(chunk) <= _MAX_SYNC_COMPRESSION else None

    async def compress(self, chunk: bytes) -> bytes:
        """The next compressed bytes. Must not be cancelled."""
        return await self._compressor.compress(chunk)

    def flush(self) -> bytes:
        """The last compressed bytes."""
        return self._compressor.flush()

    @property
    def can_be_copied(self) -> bool:
        """Whether `copy` works: it does for zlib, not for all that it may be replaced by (`set_zlib_backend`)."""
        return hasattr(self._compressor._compressor, "copy")

    def copy(self) -> "Compressor":
        """One that goes on from here as this does."""
        twin = copy.copy(self._compressor)
        compressor: Any = self._compressor._compressor
        twin._compressor = compressor.copy()
        return Compressor(twin)

    def give_back(self, writer: Any) -> None:
        """Let a writer compress with this again."""
        writer._compress = self._compressor


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
        # Whoever waits may give up: then nobody else asks for what `connection_lost` puts in.
        waiter.add_done_callback(_look_at)
    return waiter


def _look_at(waiter: "asyncio.Future[None]") -> None:
    if not waiter.cancelled():
        waiter.exception()


def unsent(request: web.BaseRequest) -> object:
    """What waits here until the client reads: changes with every segment that its side has acknowledged.

    The transport's buffer alone moves in large steps. What the system keeps beside it is asked for where it says so.
    """
    transport = request.transport
    if transport is None:
        return None
    in_kernel = b""
    sock = transport.get_extra_info("socket")
    with suppress(OSError, ValueError, AttributeError):
        in_kernel = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return transport.get_write_buffer_size(), in_kernel


def cancels_handlers(request: web.BaseRequest) -> bool:
    """Whether the server cancels the handler of a client that leaves (`handler_cancellation`, 3.9)."""
    manager = request.protocol._manager
    # Without a manager the client has left, and this handler was not cancelled for it.
    return manager is not None and bool(manager.handler_cancellation)


def is_of_connection(task: "asyncio.Task[Any] | None") -> bool:
    """Whether this is the task in which aiohttp runs all that a request goes through (`_handle_request`, 3.0)."""
    if task is None or task.done():
        return False
    code = getattr(task.get_coro(), "cr_code", None)
    return code is RequestHandler._handle_request.__code__


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
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
