"""With nobody else there, a streamed answer is exactly as without the middleware: to the byte, and to the exception.

Every handler here runs in two servers, one without the middleware and one with it, and is sent the same bytes. What
comes over the wire, what the handler and an outer middleware see, and what the access log is told must be the same.
"""

import array
import asyncio
import contextvars
import functools
import io
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import MultipartWriter, payload, web
from aiohttp.abc import AbstractAccessLogger, AbstractStreamWriter
from aiohttp.http_writer import StreamWriter

from aiohttp_reduce import reduce_middleware

from .harness import PATIENCE, Server, eventually
from .streaming import nothing_is_left

# What is compared are bytes, exceptions and figures of aiohttp's own: the loop makes no difference, but for the time.
pytestmark = pytest.mark.one_loop

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

NOTES = web.AppKey("NOTES", list[Any])
FOLDER = web.AppKey("FOLDER", Path)
OPENED = web.AppKey("OPENED", list[Any])
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")

KIB = 1024


def get(target: str = "/", *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: localhost", *lines, "", ""]).encode()


# The last one of a connection is answered by another handler, and shows that the connection can still be used.
NEXT = get("/next", "Connection: close")

REQUESTS = {
    "keep-alive, the same again, then another": get() + get() + NEXT,
    "Connection: close": get("/", "Connection: close"),
    "HEAD": get(method="HEAD") + NEXT,
    "gzip": get("/", "Accept-Encoding: gzip") + NEXT,
    "deflate, gzip": get("/", "Accept-Encoding: deflate, gzip") + NEXT,
    "identity": get("/", "Accept-Encoding: identity") + NEXT,
    "HEAD, gzip": get("/", "Accept-Encoding: gzip", method="HEAD") + NEXT,
    "HTTP/1.0": get(version="1.0"),
    "HTTP/1.0, gzip": get("/", "Accept-Encoding: gzip", version="1.0"),
    "HTTP/1.0, keep-alive": get("/", "Connection: keep-alive", version="1.0") + NEXT,
    "HTTP/1.0, HEAD": get("/", "Connection: keep-alive", version="1.0", method="HEAD") + NEXT,
}


class Log(AbstractAccessLogger):
    """An access log that notes what `%r %s %b` say."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        if isinstance(request, web.Request):
            request.app[NOTES].append(("log", request.path, response.status, response.body_length))

    @property
    def enabled(self) -> bool:
        return True


class Side(Server):
    """A server that notes what happens in it. Its other route answers `/next`."""

    def __init__(self, handler: Handler, outer: Iterable[Any], folder: Path, middleware: Any, signal: Any) -> None:
        async def following(request: web.Request) -> web.Response:
            return web.Response(text="the next one")

        app = web.Application(middlewares=[*outer, *([] if middleware is None else [middleware])])
        app.router.add_route("*", "/", handler)
        app.router.add_route("*", "/next", following)
        self.notes: list[Any] = []
        app[NOTES] = self.notes
        app[FOLDER] = folder
        app[OPENED] = []
        if signal is not None:
            app.on_response_prepare.append(signal)
        super().__init__(app, middleware=middleware)
        self._runner = web.AppRunner(app, access_log=logging.getLogger("tests"), access_log_class=Log)


class Both:
    """The same handler without the middleware, and with it."""

    def __init__(self, plain: Side, ours: Side) -> None:
        self.plain = plain
        self.ours = ours

    async def exchange(self, sent: bytes) -> tuple[bytes, list[Any]]:
        """Send these bytes to both, and return what came from both, and what was noted."""
        plain, ours = [await self._told(side, sent) for side in (self.plain, self.ours)]
        assert _shortened(ours[0]) == _shortened(plain[0])
        assert ours == plain
        return ours

    async def all_requests(self) -> None:
        for name, sent in REQUESTS.items():
            try:
                await self.exchange(sent)
            except AssertionError as error:
                error.add_note(f"the request: {name}")
                raise
        await nothing_is_left(self.ours)

    async def _told(self, side: Side, sent: bytes) -> tuple[bytes, list[Any]]:
        side.notes.clear()
        connection = await side.connect()
        connection.writer.write(sent)
        received = await all_of(connection.reader)
        await connection.close()
        await eventually(lambda: not side.runner.server.connections)  # type: ignore[union-attr]
        return received, list(side.notes)


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, and how it ends; without what depends on the time."""
    received = bytearray()
    async with asyncio.timeout(PATIENCE):
        try:
            while piece := await reader.read(2**20):
                received += piece
        except ConnectionResetError:
            received += b"(reset)"
    return re.sub(rb"\r\n(Date|Last-Modified): [^\r]*", rb"\r\n\1: then", bytes(received))


def _shortened(received: bytes) -> bytes:
    return received if len(received) < 4 * KIB else received[: 2 * KIB] + b" ... " + received[-KIB:]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Both]]]:
    """Start both servers for a handler."""
    sides: list[Side] = []

    async def start(handler: Handler, *, outer: Iterable[Any] = (), signal: Any = None, **options: Any) -> Both:
        made = [Side(handler, outer, tmp_path, one, signal) for one in (None, reduce_middleware(**options))]
        for side in made:
            sides.append(side)
            await side.start()
        return Both(*made)

    yield start
    for side in sides:
        await side.stop()
        # aiohttp does not close a body that it does not send, as for HEAD.
        for one in side.app[OPENED]:
            one.close()


def note(request: web.Request, *what: Any) -> None:
    request.app[NOTES].append(what)


def raised(exception: BaseException) -> tuple[str, str]:
    return type(exception).__qualname__, str(exception)


async def noted(request: web.Request, what: str, awaitable: Awaitable[Any]) -> Any:
    """Await it, and note how that ended."""
    try:
        result = await awaitable
    except BaseException as exception:
        note(request, what, *raised(exception))
        raise
    note(request, what, "done")
    return result


def look_of(response: web.StreamResponse) -> tuple[Any, ...]:
    """All that a response says of itself."""
    return (
        type(response),
        response.prepared,
        response.status,
        response.reason,
        sorted((name, value) for name, value in response.headers.items() if name not in {"Date", "Last-Modified"}),
        response.keep_alive,
        response.chunked,
        response.compression,
        response.body_length,
        response.content_length,
        response.content_type,
        re.sub(r" at 0x\w+", "", repr(response)),
    )


@web.middleware
async def looking(request: web.Request, handler: Any) -> web.StreamResponse:
    """An outer middleware that notes what it is given."""
    try:
        response: web.StreamResponse = await handler(request)
    except BaseException as exception:
        note(request, "outside", *raised(exception))
        raise
    note(request, "outside", *look_of(response))
    return response


# Handlers that write themselves.


def writes(
    *chunks: Any,
    eof: bytes | None = None,
    length: int | None = None,
    chunked: bool = False,
    compressed: Any = False,
    fail: Callable[[], BaseException] | None = None,
    **options: Any,
) -> Handler:
    """A handler that prepares a response with these options, and writes these chunks.

    `compressed` is what `enable_compression` is given, False not to call it; `fail` makes what is raised at the end.
    """

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(**options)
        if length is not None:
            response.content_length = length
        if chunked:
            response.enable_chunked_encoding()
        if compressed is not False:
            response.enable_compression(compressed)
        writer = await noted(request, "prepare", response.prepare(request))
        note(request, isinstance(writer, AbstractStreamWriter), isinstance(writer, type(request.writer)))
        for chunk in chunks:
            await noted(request, "write", response.write(chunk() if callable(chunk) else chunk))
            note(request, writer.output_size, writer.length, *look_of(response))
        if fail is not None:
            raise fail()
        if eof is not None:
            await noted(request, "write_eof", response.write_eof(eof))
            note(request, *look_of(response))
        return response

    return handler


@functools.cache
def large(size: int) -> bytes:
    """So many bytes that can be compressed, but not to nothing."""
    return b"".join(b"%d," % number for number in range(size // 4))[:size].ljust(size, b".")


MIXED = (b"one", large(4096), large(4097), b"", large(70 * KIB), b"last")
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "Content-Length": {"length": sum(map(len, MIXED))},
    "chunked": {"chunked": True},
    "compressed": {"compressed": None},
    "compressed and chunked": {"compressed": None, "chunked": True},
    "compressed with Content-Length": {"compressed": None, "length": sum(map(len, MIXED))},
    "gzip forced": {"compressed": web.ContentCoding.gzip},
    "deflate forced": {"compressed": web.ContentCoding.deflate},
    "identity forced": {"compressed": web.ContentCoding.identity},
}

STATUS_SHAPES: dict[str, dict[str, Any]] = {
    "": {},
    ", Content-Length": {"length": 9},
    ", compressed": {"compressed": None},
}

STREAMS: dict[str, Handler] = {
    **{f"{shape}, returned": writes(*MIXED, **options) for shape, options in SHAPES.items()},
    **{f"{shape}, write_eof": writes(*MIXED[:-1], eof=MIXED[-1], **options) for shape, options in SHAPES.items()},
    **{f"{shape}, empty write_eof": writes(*MIXED, eof=b"", **options) for shape, options in SHAPES.items()},
    **{f"{shape}, empty": writes(**{**options, "length": None}) for shape, options in SHAPES.items()},
    **{f"{shape}, empty writes": writes(b"", b"", **{**options, "length": None}) for shape, options in SHAPES.items()},
    **{
        f"{shape}, all in write_eof": writes(eof=b"all", **{**options, "length": None})
        for shape, options in SHAPES.items()
    },
    **{
        f"{status}, written to{shape}": writes(b"some", b"thing", status=status, **options)
        for status in (200, 204, 206, 304, 404)
        for shape, options in STATUS_SHAPES.items()
    },
    **{
        f"{status}{shape}": writes(status=status, **options)
        for status in (200, 204, 206, 304, 404)
        for shape, options in STATUS_SHAPES.items()
    },
    "a reason": writes(b"x", status=299, reason="Fine enough"),
    "headers": writes(b"x", headers=[("X-Several", "1"), ("x-several", "2"), ("ETag", '"abc"')]),
    "its own Date and Server": writes(b"x", headers={"Date": "Thu, 01 Jan 1970 00:00:00 GMT", "Server": "mine"}),
    "its own Connection: close": writes(b"x", headers={"Connection": "close"}),
    "its own Connection: keep-alive": writes(b"x", headers={"Connection": "keep-alive"}),
    "its own Transfer-Encoding": writes(b"x", headers={"Transfer-Encoding": "chunked"}),
    "its own Content-Encoding": writes(b"x", headers={"Content-Encoding": "br"}),
    "an event stream": writes(b"data: 1\n\n", b"data: 2\n\n", headers={"Content-Type": "text/event-stream"}),
    "parts that replace each other": writes(b"x", headers={"Content-Type": "multipart/x-mixed-replace; boundary=b"}),
    "more than Content-Length": writes(b"four", b"four", b"four", length=6),
    "more than Content-Length, in write_eof": writes(b"four", eof=b"four", length=6),
    "fewer than Content-Length": writes(b"four", length=6),
    "fewer than Content-Length, write_eof": writes(b"four", eof=b"", length=6),
    "nothing of Content-Length": writes(length=6),
    "Content-Length: 0": writes(length=0),
    "Content-Length: 0, written to": writes(b"x", length=0),
    "bytearray": writes(bytearray(b"abc"), bytearray(), bytearray(b"def")),
    "memoryview": writes(memoryview(b"abc"), memoryview(bytearray(b"def"))[1:2], memoryview(b"")),
    "memoryview, reshaped": writes(memoryview(b"abcdef").cast("B", (2, 3)), length=5),
    "memoryview of integers": writes(memoryview(array.array("I", [1, 2, 3])), length=12),
    "memoryview of integers, compressed": writes(memoryview(array.array("I", [1, 2, 3])), compressed=None),
    "memoryview of integers, chunked": writes(memoryview(array.array("H", [1, 2, 3])), chunked=True),
    "bytes of a class of its own": writes(type("Bytes", (bytes,), {})(b"abc")),
    "bytearray and memoryview in write_eof": writes(b"x", eof=bytearray(b"abc")),  # type: ignore[arg-type]
    "a str": writes(b"x", "abc"),
    "None": writes(b"x", None),
    "many tiny chunks": writes(*[b"%d" % number for number in range(300)]),
    "many tiny chunks, compressed": writes(*[b"%d" % number for number in range(300)], compressed=None),
    "a few of 70 KiB": writes(*[large(70 * KIB)] * 3),
    "RuntimeError after prepare": writes(fail=lambda: RuntimeError("broken")),
    "RuntimeError midway": writes(b"x", b"y", fail=lambda: RuntimeError("broken")),
    "RuntimeError midway, Content-Length": writes(b"x", b"y", length=10, fail=lambda: RuntimeError("broken")),
    "RuntimeError midway, compressed": writes(b"x", b"y", compressed=None, fail=lambda: RuntimeError("broken")),
    "RuntimeError after all of Content-Length": writes(b"x", length=1, fail=lambda: RuntimeError("broken")),
    "TimeoutError midway": writes(b"x", fail=lambda: TimeoutError("too late")),
    "ConnectionResetError midway": writes(b"x", fail=lambda: ConnectionResetError("upstream")),
    "CancelledError midway": writes(b"x", fail=lambda: asyncio.CancelledError()),
    "HTTPException after prepare": writes(fail=lambda: web.HTTPNotFound(text="not here")),
    "HTTPException midway": writes(b"x", b"y", fail=lambda: web.HTTPNotFound(text="not here")),
    "HTTPException midway, compressed": writes(b"x", compressed=None, fail=lambda: web.HTTPGone(text="not here")),
}


@pytest.mark.parametrize("name", STREAMS)
async def test_what_a_handler_writes_is_as_without_us(both: Any, name: str) -> None:
    sides = await both(STREAMS[name], outer=[looking])
    await sides.all_requests()


def own(handler: Handler) -> Handler:
    OWN[handler.__name__] = handler
    return handler


OWN: dict[str, Handler] = {}


@own
async def five_mebibytes(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(80):
        await response.write(large(64 * KIB))
    return response


@own
async def one_chunk_that_is_larger_than_the_buffer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(bytes(5 * KIB * KIB))
    await response.write(b"end")
    return response


@own
async def a_bytearray_that_is_changed_after_it_was_written(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    chunk = bytearray(b"first")
    await response.write(chunk)
    chunk[:] = b"second, which is longer"
    await response.write(chunk)
    chunk[:] = b"?"
    return response


@own
async def cookies(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.set_cookie("a", "1", httponly=True)
    response.set_cookie("b", "2", max_age=5)
    response.del_cookie("c")
    await response.prepare(request)
    await response.write(b"crumbs")
    note(request, response.cookies.output(), response.headers.getall("Set-Cookie"))
    return response


@own
async def raises_before_prepare(request: web.Request) -> web.StreamResponse:
    web.StreamResponse()
    raise RuntimeError("before")


@own
async def raises_an_http_exception_before_prepare(request: web.Request) -> web.StreamResponse:
    raise web.HTTPConflict(text="before", headers={"X-Why": "conflict"})


@own
async def writes_after_the_end(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write_eof(b"all")
    with pytest.raises(RuntimeError):
        await noted(request, "write", response.write(b"more"))
    await noted(request, "write_eof", response.write_eof(b"more"))
    note(request, await response.prepare(request))
    return response


@own
async def writes_after_the_end_to_the_writer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    writer = await response.prepare(request)
    assert writer is not None
    await response.write_eof(b"all")
    await noted(request, "write_eof", writer.write_eof(b"more"))
    return response


@own
async def writes_before_prepare(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await noted(request, "write", response.write(b"early"))
    return response


@own
async def prepares_twice(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    first = await response.prepare(request)
    await response.write(b"one")
    note(request, await response.prepare(request) is first)
    await response.write(b"two")
    return response


@own
async def prepares_with_a_clone(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request.clone())
    await response.write(b"one")
    await response.write(b"two")
    return response


@own
async def prepares_in_a_task_of_its_own(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_compression()
    await asyncio.create_task(response.prepare(request))
    await response.write(b"one")
    await response.write(b"two")
    return response


@own
async def prepares_within_wait_for(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await asyncio.wait_for(response.prepare(request), 5)
    await asyncio.wait_for(response.write(b"one"), 5)
    await asyncio.gather(response.write(b"two"), response.write(b"three"))
    return response


@own
async def changes_headers_after_prepare(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    response.headers["X-Late"] = "too late"
    await response.write(b"one")
    response.force_close()
    return response


@own
async def forces_the_connection_to_be_closed(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.force_close()
    await response.prepare(request)
    await response.write(b"one")
    return response


@own
async def begins_a_second_response(request: web.Request) -> web.StreamResponse:
    first = web.StreamResponse()
    await first.prepare(request)
    await first.write(b"one")
    second = web.StreamResponse(headers={"X-Which": "second"})
    await second.prepare(request)
    await second.write(b"two")
    return second


@own
async def returns_another_response(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    return web.Response(text="another")


@own
async def returns_none(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    return None  # type: ignore[return-value]


@own
async def prepares_but_returns_a_fresh_response(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    return web.Response(text="another")


@own
async def prepares_a_whole_response(request: web.Request) -> web.StreamResponse:
    response = web.Response(text="whole")
    await response.prepare(request)
    note(request, *look_of(response))
    return response


@own
async def prepares_and_ends_a_whole_response(request: web.Request) -> web.StreamResponse:
    response = web.Response(text="whole")
    await response.prepare(request)
    await noted(request, "write_eof", response.write_eof())
    note(request, *look_of(response))
    return response


@own
async def prepares_a_whole_response_that_is_compressed(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=large(9000))
    response.enable_compression()
    await response.prepare(request)
    return response


@own
async def prepares_a_response_with_a_body_that_is_read_once(request: web.Request) -> web.StreamResponse:
    response = web.Response(body=io.BytesIO(large(9000)))
    response.enable_compression()
    await response.prepare(request)
    return response


@own
async def prepares_a_response_without_a_body_and_writes_to_it(request: web.Request) -> web.StreamResponse:
    response = web.Response(headers={"Content-Length": "6"})
    await response.prepare(request)
    await response.write(b"one")
    await response.write(b"two")
    return response


@own
async def prepares_an_http_exception(request: web.Request) -> web.StreamResponse:
    response = web.HTTPNotFound(text="not here")
    await response.prepare(request)
    raise response


@own
async def a_websocket_without_an_upgrade(request: web.Request) -> web.StreamResponse:
    socket_response = web.WebSocketResponse()
    note(request, bool(socket_response.can_prepare(request)))
    await noted(request, "prepare", socket_response.prepare(request))
    return socket_response


@own
async def a_file(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(_file(request))


@own
async def a_file_that_is_prepared(request: web.Request) -> web.StreamResponse:
    response = web.FileResponse(_file(request))
    await noted(request, "prepare", response.prepare(request))
    return response


@own
async def a_file_that_is_missing(request: web.Request) -> web.StreamResponse:
    response = web.FileResponse(_file(request).with_name("missing"))
    await noted(request, "prepare", response.prepare(request))
    return response


def _file(request: web.Request) -> Path:
    path = request.app[FOLDER] / "file.bin"
    if not path.exists():
        path.write_bytes(large(100 * KIB))
    return path


class Shouting(web.StreamResponse):
    async def write(self, data: Any) -> None:
        await super().write(bytes(data).upper())


@own
async def a_class_that_writes_in_its_own_way(request: web.Request) -> web.StreamResponse:
    response = Shouting()
    await response.prepare(request)
    await response.write(b"one")
    return response


class Signing(web.Response):
    async def write_eof(self, data: bytes = b"") -> None:
        await super().write_eof(data)


@own
async def a_response_class_that_ends_in_its_own_way(request: web.Request) -> web.StreamResponse:
    return Signing(body=io.BytesIO(b"one"))


@own
async def writes_to_the_writer_itself(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_compression()
    writer = await response.prepare(request)
    assert writer is not None
    note(request, writer.transport is request.transport, writer.protocol is request.protocol)  # type: ignore[attr-defined]
    await writer.write(b"one")
    await writer.write(large(100), drain=False)  # type: ignore[call-arg]
    await writer.drain()
    await writer.write_eof(b"end")
    return response


@own
async def writes_to_the_request_writer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    note(request, request.writer is response._payload_writer)
    await request.writer.write(b"one")
    await response.write(b"two")
    return response


@own
async def copies_a_body_to_the_writer(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    writer = await response.prepare(request)
    assert writer is not None
    await payload.BytesIOPayload(io.BytesIO(large(9000))).write(writer)
    return response


@own
async def sends_while_other_tasks_run(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for number in range(5):
        await asyncio.sleep(0.001)
        await response.write(b"%d" % number)
    return response


@own
async def drains(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one")
    with pytest.warns(DeprecationWarning, match="drain method"):
        await response.drain()
    return response


@own
async def sets_a_context_variable(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    VARIABLE.set("the handler")
    await response.prepare(request)
    note(request, VARIABLE.get())
    return response


@pytest.mark.parametrize("name", OWN)
async def test_whatever_a_handler_does_is_as_without_us(both: Any, name: str) -> None:
    @web.middleware
    async def variable(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        note(request, VARIABLE.get())
        return response

    sides = await both(OWN[name], outer=[variable, looking])
    await sides.all_requests()


@pytest.mark.parametrize("lines", [("Range: bytes=5-9",), ("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",)])
@pytest.mark.parametrize("name", ["a_file", "a_file_that_is_prepared"])
async def test_a_file_is_sent_in_part_or_not_at_all_as_without_us(both: Any, name: str, lines: Any) -> None:
    sides = await both(OWN[name], outer=[looking])
    await sides.exchange(get("/", *lines) + NEXT)


# Bodies that can be read once.


async def generated(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def breaking(exception: BaseException, *pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
    raise exception


class Counting(payload.Payload):
    """A payload of an application; notes how it is used."""

    def __init__(self, request: web.Request, size: int | None, *, error: BaseException | None = None) -> None:
        super().__init__(b"", headers={"X-Payload": "yes"}, content_type="application/x-counting")
        self.request = request
        self._size = size
        self.error = error

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return "countless"

    async def write(self, writer: AbstractStreamWriter) -> None:
        note(self.request, "payload", "write")
        for number in range(4):
            await writer.write(b"%d;" % number)
        await writer.write(bytearray(b"end"))
        if self.error is not None:
            raise self.error

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        note(self.request, "payload", "write_with_length", content_length)
        await self.write(writer)

    async def close(self) -> None:
        note(self.request, "payload", "close")


def multipart() -> MultipartWriter:
    writer = MultipartWriter("mixed", boundary="boundary")
    writer.append("text")
    writer.append(b"bytes", {"X-Part": "2"})
    writer.append_json({"three": 3})
    return writer


def opened(request: web.Request, mode: str = "rb") -> Any:
    file = _file(request).open(mode)
    request.app[OPENED].append(file)
    return file


BODIES: dict[str, Callable[[web.Request], Any]] = {
    "an async generator": lambda _: generated(b"one", b"", b"two", large(4097), large(70 * KIB)),
    "an empty async generator": lambda _: generated(),
    "an async generator of bytearrays": lambda _: generated(bytearray(b"one"), bytearray(b"two")),  # type: ignore[arg-type]
    "an async iterable payload": lambda _: payload.AsyncIterablePayload(generated(b"one"), content_type="text/plain"),
    "BytesIO": lambda _: io.BytesIO(large(70 * KIB)),
    "BytesIO, read in part": lambda _: _advanced(io.BytesIO(b"skipped, and read")),
    "an empty BytesIO": lambda _: io.BytesIO(),
    "a BufferedReader": lambda _: io.BufferedReader(io.BytesIO(large(5000))),
    "StringIO": lambda _: io.StringIO("Grüße\n" * 1000),
    "a file": opened,
    "a text file": lambda request: opened(request, "r"),
    "several parts": lambda _: multipart(),
    "a payload class": lambda request: Counting(request, None),
    "a payload class with a size": lambda request: Counting(request, 11),
    "a payload class that is longer": lambda request: Counting(request, 6),
    "a payload class that is shorter": lambda request: Counting(request, 99),
    "a generator that breaks at once": lambda _: breaking(RuntimeError("broken")),
    "a generator that breaks midway": lambda _: breaking(RuntimeError("broken"), b"one", b"two"),
    "a generator that raises an HTTPException": lambda _: breaking(web.HTTPNotFound(text="no"), b"one"),
    "a generator that raises an HTTPException at once": lambda _: breaking(web.HTTPNotFound(text="no")),
    "a generator that is cancelled": lambda _: breaking(asyncio.CancelledError(), b"one"),
    "a generator that times out": lambda _: breaking(TimeoutError("late"), b"one"),
    "a payload class that breaks": lambda request: Counting(request, None, error=RuntimeError("broken")),
    "a payload class with a size that breaks": lambda request: Counting(request, 99, error=OSError("broken")),
    "a generator of no bytes": lambda _: generated(b"one", 2),  # type: ignore[arg-type]
    "a long generator": lambda _: generated(*[large(64 * KIB)] * 80),
}


def _advanced(body: io.BytesIO) -> io.BytesIO:
    body.seek(9)
    return body


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda response: None,
    "chunked": lambda response: response.enable_chunked_encoding(),
    "compressed": lambda response: response.enable_compression(),
    "gzip forced": lambda response: response.enable_compression(web.ContentCoding.gzip),
    "identity forced": lambda response: response.enable_compression(web.ContentCoding.identity),
    "compressed and chunked": lambda response: (response.enable_compression(), response.enable_chunked_encoding()),
    "404": lambda response: response.set_status(404, "Nowhere"),
    "304": lambda response: response.set_status(304),
    "with cookies": lambda response: response.set_cookie("a", "1"),
    "closing": lambda response: response.force_close(),
    "with its own type": lambda response: setattr(response, "content_type", "text/x-own"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_can_be_read_once_is_sent_as_without_us(both: Any, name: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=BODIES[name](request))

    sides = await both(handler, outer=[looking])
    await sides.all_requests()


@pytest.mark.parametrize("body", ["an async generator", "BytesIO", "several parts", "a payload class with a size"])
@pytest.mark.parametrize("answer", list(ANSWERS)[1:])
async def test_a_body_that_can_be_read_once_is_framed_as_without_us(both: Any, answer: str, body: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=BODIES[body](request))
        ANSWERS[answer](response)
        return response

    sides = await both(handler, outer=[looking])
    await sides.all_requests()


@pytest.mark.parametrize("length", [0, 3, 6, 9])
@pytest.mark.parametrize("coding", [False, True])
async def test_a_body_with_the_handlers_own_content_length_is_as_without_us(
    both: Any, length: int, coding: bool
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=generated(b"one", b"two"), headers={"Content-Length": str(length)})
        if coding:
            response.enable_compression()
        return response

    sides = await both(handler, outer=[looking])
    await sides.all_requests()


async def test_a_body_with_a_length_and_a_size_is_asked_for_no_more_than_without_us(both: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=Counting(request, 99), headers={"Content-Length": "5"})

    sides = await both(handler)
    await sides.all_requests()


async def test_a_raised_answer_with_a_body_that_can_be_read_once_is_as_without_us(both: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        error = web.HTTPNotFound()
        error.body = generated(b"not ", b"here")
        raise error

    sides = await both(handler, outer=[looking])
    await sides.all_requests()


async def test_a_generator_runs_with_the_context_and_in_the_task_of_its_request(both: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        task = asyncio.current_task()
        VARIABLE.set("the handler")

        async def body() -> AsyncIterator[bytes]:
            note(request, "body", VARIABLE.get(), asyncio.current_task() is task)
            VARIABLE.set("the body")
            yield b"one"
            note(request, "body", VARIABLE.get())
            yield VARIABLE.get().encode()

        return web.Response(body=body())

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        VARIABLE.set("outside")
        response: web.StreamResponse = await handler(request)
        note(request, "after", VARIABLE.get())
        VARIABLE.set("outside, afterwards")
        return response

    sides = await both(handler, outer=[outer])
    received, notes = await sides.exchange(get("/", "Connection: close"))
    assert ("body", "outside, afterwards", True) in notes
    assert b"the body" in received


@pytest.mark.parametrize("written", [False, True])
async def test_a_payload_is_given_a_writer_as_without_us(both: Any, written: bool) -> None:
    class Curious(Counting):
        async def write(self, writer: AbstractStreamWriter) -> None:
            note(self.request, isinstance(writer, AbstractStreamWriter), isinstance(writer, StreamWriter))
            note(self.request, writer.output_size, writer.length)
            await writer.write(b"one")
            note(self.request, writer.output_size, writer.length)

    async def handler(request: web.Request) -> web.StreamResponse:
        if not written:
            return web.Response(body=Curious(request, None))
        response = web.StreamResponse()
        writer = await response.prepare(request)
        assert writer is not None
        await Curious(request, None).write(writer)
        return response

    sides = await both(handler, outer=[looking])
    await sides.all_requests()


@pytest.mark.filterwarnings("ignore:It is recommended to use")
async def test_a_generator_sees_the_request_as_without_us(both: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        async def body() -> AsyncIterator[bytes]:
            request["count"] = request.get("count", 0) + 1
            yield repr(sorted(request.headers.items())).encode()
            yield repr((request.get("outer"), request.get("count"), request.remote, request.keep_alive)).encode()
            yield repr((request.cookies, request.query, request.transport is None)).encode()

        return web.Response(body=body())

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        request["outer"] = "before"
        response: web.StreamResponse = await handler(request)
        request["outer"] = "after"
        return response

    sides = await both(handler, outer=[outer])
    await sides.exchange(get("/?a=1", "Cookie: c=d", "X-Y: z") + NEXT)
    await nothing_is_left(sides.ours)


# What outer middlewares see and do.


@pytest.mark.parametrize("name", BODIES)
async def test_an_outer_middleware_sees_the_body_as_without_us(both: Any, name: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=BODIES[name](request))

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        if request.path == "/next":
            return response
        assert isinstance(response, web.Response)
        body: Any = response.body
        note(request, isinstance(body, payload.Payload), body.__class__, body.size)
        kinds = (payload.IOBasePayload, payload.AsyncIterablePayload, payload.StringIOPayload, MultipartWriter)
        note(request, [isinstance(body, kind) for kind in kinds])
        note(request, bool(body.headers), body.content_type, body.filename, body.encoding)
        try:
            note(request, body.decode())
        except (TypeError, UnicodeDecodeError) as error:
            note(request, *raised(error))
        return response

    sides = await both(handler, outer=[outer])
    await sides.all_requests()


Change = Callable[[web.Request, Any], Awaitable[Any]]
CHANGES: dict[str, Change] = {}


def change(function: Change) -> Change:
    CHANGES[function.__name__] = function
    return function


@change
async def changes_headers(request: web.Request, response: Any) -> Any:
    response.headers["X-Outer"] = "changed"
    response.headers.popall("Content-Type", None)


@change
async def sets_a_cookie(request: web.Request, response: Any) -> Any:
    response.set_cookie("outer", "1")


@change
async def sets_the_length(request: web.Request, response: Any) -> Any:
    response.headers["Content-Length"] = "2"


@change
async def compresses(request: web.Request, response: Any) -> Any:
    response.enable_compression()


@change
async def makes_it_chunked(request: web.Request, response: Any) -> Any:
    response.enable_chunked_encoding()


@change
async def makes_it_not_modified(request: web.Request, response: Any) -> Any:
    response.set_status(304)


@change
async def replaces_the_body_by_bytes(request: web.Request, response: Any) -> Any:
    response.body = b"replaced"


@change
async def replaces_the_body_by_a_text(request: web.Request, response: Any) -> Any:
    response.text = "replaced"


@change
async def replaces_the_body_by_none(request: web.Request, response: Any) -> Any:
    response.body = None


@change
async def replaces_the_body_by_another_that_is_read_once(request: web.Request, response: Any) -> Any:
    response.body = io.BytesIO(b"replaced")


@change
async def gives_the_body_to_another_response(request: web.Request, response: Any) -> Any:
    return web.Response(body=response.body, headers={"X-Outer": "another"})


@change
async def replaces_the_response(request: web.Request, response: Any) -> Any:
    await response.body.close()
    return web.Response(text="another")


@change
async def raises(request: web.Request, response: Any) -> Any:
    raise RuntimeError("outside")


@change
async def sends_it_itself(request: web.Request, response: Any) -> Any:
    await response.prepare(request)
    await response.write_eof()


@change
async def writes_the_body_to_a_stream_of_its_own(request: web.Request, response: Any) -> Any:
    stream = web.StreamResponse(headers={"X-Outer": "a stream"})
    writer = await stream.prepare(request)
    await stream.write(b"before;")
    await response.body.write(writer)
    await response.body.close()
    await stream.write(b";after")
    return stream


@change
async def writes_the_body_to_a_compressed_stream(request: web.Request, response: Any) -> Any:
    stream = web.StreamResponse(headers={"X-Outer": "a stream"})
    stream.enable_compression()
    writer = await stream.prepare(request)
    await stream.write(b"before;")
    await response.body.write(writer)
    await response.body.close()
    await stream.write(b";after")
    return stream


class Collecting(AbstractStreamWriter):
    """What the body of a response is written to by a middleware that collects it."""

    def __init__(self) -> None:
        self.collected = bytearray()

    async def write(self, chunk: Any) -> None:
        self.collected += chunk

    async def write_eof(self, chunk: bytes = b"") -> None:
        raise AssertionError

    async def drain(self) -> None:
        raise AssertionError

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        raise AssertionError

    def enable_chunking(self) -> None:
        raise AssertionError

    async def write_headers(self, status_line: str, headers: Any) -> None:
        raise AssertionError


class CollectingOnly:
    """The same with no more than what a payload calls."""

    def __init__(self) -> None:
        self.collected = bytearray()

    async def write(self, chunk: Any) -> None:
        self.collected += chunk


@change
async def collects_the_body(request: web.Request, response: Any) -> Any:
    collecting = Collecting()
    await response.body.write(collecting)
    await response.body.close()
    response.body = bytes(collecting.collected) + b", collected"


@change
async def collects_the_body_by_what_is_no_writer(request: web.Request, response: Any) -> Any:
    collecting = CollectingOnly()
    await response.body.write(collecting)
    await response.body.close()
    response.body = bytes(collecting.collected) + b", collected"


@pytest.mark.parametrize("body", ["an async generator", "BytesIO", "several parts", "a payload class with a size"])
@pytest.mark.parametrize("name", CHANGES)
async def test_an_outer_middleware_can_do_with_a_body_what_it_could_without_us(both: Any, name: str, body: str) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=BODIES[body](request))

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response = await handler(request)
        if request.path == "/next":
            return response  # type: ignore[no-any-return]
        await asyncio.sleep(0)
        changed: web.StreamResponse = await CHANGES[name](request, response) or response
        return changed

    sides = await both(handler, outer=[outer])
    await sides.all_requests()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eof", [False, True])
async def test_an_outer_middleware_can_write_on_as_without_us(both: Any, shape: str, eof: bool) -> None:
    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if request.path == "/next":
            return response
        await noted(request, "write", response.write(b"by an outer middleware, "))
        await noted(request, "write", response.write(b"in two pieces"))
        if eof:
            await noted(request, "write_eof", response.write_eof(b" and an end"))
        note(request, *look_of(response))
        return response

    options = dict(SHAPES[shape])
    if "length" in options:
        options["length"] = 40
    sides = await both(writes(b"one", b"two", **options), outer=[outer])
    await sides.all_requests()


async def test_an_outer_middleware_that_gave_up_answers_as_without_us(both: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response(text="too late")

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        try:
            async with asyncio.timeout(0.01):
                response: web.StreamResponse = await handler(request)
        except TimeoutError:
            response = web.StreamResponse(status=504)
            await response.prepare(request)
            await response.write(b"gave up")
        return response

    sides = await both(handler, outer=[outer])
    await sides.exchange(get() + NEXT)
    await nothing_is_left(sides.ours)


async def test_signals_are_sent_once_and_see_the_response_as_without_us(both: Any) -> None:
    async def signal(request: web.Request, response: web.StreamResponse) -> None:
        note(request, "signal", *look_of(response))
        response.headers["X-Signal"] = "seen"

    for handler in (writes(b"one", compressed=None), OWN["cookies"], STREAMS["204"]):
        sides = await both(handler, outer=[looking], signal=signal)
        await sides.all_requests()


async def test_a_signal_that_raises_is_raised_as_without_us(both: Any) -> None:
    async def signal(request: web.Request, response: web.StreamResponse) -> None:
        if response.status == 200 and request.path == "/":
            raise RuntimeError("a signal")

    for handler in (writes(b"one"), OWN["a_file"]):
        sides = await both(handler, outer=[looking], signal=signal)
        await sides.exchange(get() + NEXT)


# Clients that leave, and clients that do not read.


async def left_at(side: Side, handler_entered: asyncio.Event) -> None:
    connection = await side.send("/")
    await asyncio.wait_for(handler_entered.wait(), PATIENCE)
    connection.abort()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prepared", [False, True])
async def test_writing_to_a_client_that_left_raises_as_without_us(both: Any, shape: str, prepared: bool) -> None:
    entered = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        options = SHAPES[shape]
        response = web.StreamResponse()
        if "length" in options:
            response.content_length = 2**20
        if "chunked" in options:
            response.enable_chunked_encoding()
        if "compressed" in options:
            response.enable_compression(options["compressed"])
        if prepared:
            await response.prepare(request)
        entered.set()
        await eventually(lambda: request.transport is None)
        await noted(request, "prepare", response.prepare(request))
        for _ in range(3):
            try:
                await noted(request, "write", response.write(large(4096)))
            except ConnectionError:
                pass
        await noted(request, "write_eof", response.write_eof())
        return response

    sides: Both = await both(handler, outer=[looking])
    for side in (sides.plain, sides.ours):
        entered.clear()
        await left_at(side, entered)
        await eventually(lambda side=side: "outside" in [one[0] for one in side.notes])  # type: ignore[misc]
        side.notes[:] = [one for one in side.notes if one[0] != "log"]
    assert sides.ours.notes == sides.plain.notes
    await nothing_is_left(sides.ours)


async def test_a_body_for_a_client_that_left_is_read_no_further_than_without_us(both: Any) -> None:
    entered = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            entered.set()
            await eventually(lambda: request.transport is None)
            for number in range(9):
                note(request, number)
                yield b"more"

        return web.Response(body=body())

    sides: Both = await both(handler)
    for side in (sides.plain, sides.ours):
        entered.clear()
        await left_at(side, entered)
        await eventually(lambda side=side: bool(side.notes))  # type: ignore[misc]
        for _ in range(10):
            await asyncio.sleep(0)
    assert sides.ours.notes == sides.plain.notes
    await nothing_is_left(sides.ours)


@pytest.mark.parametrize("one_shot", [False, True])
async def test_a_payload_that_writes_to_a_client_that_left_is_told_as_without_us(both: Any, one_shot: bool) -> None:
    entered = asyncio.Event()

    class Endless(Counting):
        async def write(self, writer: AbstractStreamWriter) -> None:
            await writer.write(b"one")
            entered.set()
            await eventually(lambda: self.request.transport is None)
            for _ in range(3):
                await noted(self.request, "write", writer.write(b"more"))

    async def handler(request: web.Request) -> web.StreamResponse:
        body = Endless(request, None)
        if one_shot:
            return web.Response(body=body)
        response = web.StreamResponse()
        writer = await response.prepare(request)
        assert writer is not None
        try:
            await body.write(writer)
        finally:
            await body.close()
        return response

    sides: Both = await both(handler)
    for side in (sides.plain, sides.ours):
        entered.clear()
        await left_at(side, entered)
        await eventually(lambda side=side: "write" in [one[0] for one in side.notes])  # type: ignore[misc]
        for _ in range(10):  # (aiohttp 3.12 does not close the body)
            await asyncio.sleep(0)
    assert sides.ours.notes == sides.plain.notes
    await nothing_is_left(sides.ours)


async def connect_narrowly(side: Side) -> tuple[socket.socket, asyncio.AbstractEventLoop]:
    """A connection whose client takes little, and reads nothing by itself."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
    await loop.sock_connect(client, (side.address, side.port))
    await loop.sock_sendall(client, get("/", "Connection: close"))
    return client, loop


def narrow(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)


async def settled(count: Callable[[], int]) -> int:
    """The count, once it does not change any more."""
    before = -1
    async with asyncio.timeout(PATIENCE):
        while before != count() or before < 1:
            before = count()
            await asyncio.sleep(0.03)
    return before


@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize(("chunk", "tolerance"), [(1000 * KIB, 0), (100 * KIB, 1), (4 * KIB, 10), (256, 160)])
async def test_a_client_that_reads_nothing_holds_the_handler_up_as_without_us(
    both: Any, one_shot: bool, chunk: int, tolerance: int
) -> None:
    size = 4 * 1000 * KIB // chunk

    async def pieces(request: web.Request) -> AsyncIterator[bytes]:
        narrow(request)
        for number in range(size):
            note(request, number)
            yield bytes(chunk)
        note(request, "the end")

    async def handler(request: web.Request) -> web.StreamResponse:
        if one_shot:
            return web.Response(body=pieces(request))
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in pieces(request):
            await response.write(piece)
        return response

    sides: Both = await both(handler)
    begun, received = [], []
    for side in (sides.plain, sides.ours):
        client, loop = await connect_narrowly(side)
        with client:
            begun.append(await settled(lambda side=side: len(side.notes)))  # type: ignore[misc]
            whole = bytearray()
            async with asyncio.timeout(2 * PATIENCE):
                while piece := await loop.sock_recv(client, 2**20):
                    whole += piece
            received.append(re.sub(rb"\r\nDate: [^\r]*", b"", bytes(whole)))
        assert ("the end",) in side.notes
    plain, ours = begun
    assert plain < size
    assert abs(plain - ours) <= tolerance
    assert _shortened(received[0]) == _shortened(received[1])
    assert received[0] == received[1]
    await nothing_is_left(sides.ours)


@pytest.mark.parametrize("one_shot", [False, True])
async def test_a_client_that_reads_nothing_and_then_leaves_wakes_the_handler_as_without_us(
    both: Any, one_shot: bool
) -> None:
    class Endless(Counting):
        async def write(self, writer: AbstractStreamWriter) -> None:
            narrow(self.request)
            while True:
                note(self.request, "begun")
                await noted(self.request, "write", writer.write(bytes(1000 * KIB)))

    async def handler(request: web.Request) -> web.StreamResponse:
        body = Endless(request, None)
        if one_shot:
            return web.Response(body=body)
        response = web.StreamResponse()
        writer = await response.prepare(request)
        assert writer is not None
        await body.write(writer)
        return response

    sides: Both = await both(handler)
    for side in (sides.plain, sides.ours):
        client, _ = await connect_narrowly(side)
        await settled(lambda side=side: len(side.notes))  # type: ignore[misc]
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        await eventually(lambda side=side: ("write", "done") != side.notes[-1] != ("begun",))  # type: ignore[misc]
        side.notes[:] = [one for one in side.notes if one[0] != "log"]
        await eventually(lambda side=side: not side.runner.server.connections)  # type: ignore[misc]
    assert sides.ours.notes == sides.plain.notes
    await nothing_is_left(sides.ours)


@pytest.mark.parametrize("max_buffer", [0, 100, 4 * KIB])
@pytest.mark.parametrize("name", ["plain, returned", "compressed, write_eof", "Content-Length, returned"])
async def test_a_stream_is_as_without_us_however_little_may_be_kept(both: Any, name: str, max_buffer: int) -> None:
    sides = await both(STREAMS[name], max_buffer=max_buffer, outer=[looking])
    await sides.all_requests()


@pytest.mark.parametrize("max_age", [0, 0.0001])
async def test_a_stream_is_as_without_us_where_it_may_not_be_joined(both: Any, max_age: float) -> None:
    sides = await both(OWN["sends_while_other_tasks_run"], max_age=max_age, outer=[looking])
    await sides.all_requests()


async def test_the_access_log_has_the_size_that_was_sent(both: Any) -> None:
    sides = await both(writes(b"four", b"four", length=8))
    _, notes = await sides.exchange(get("/", "Connection: close"))
    assert [one[:3] for one in notes if one[0] == "log"] == [("log", "/", 200)]
