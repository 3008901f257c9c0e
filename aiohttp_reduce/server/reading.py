"""Reading a shared stream: one reader for each request that is given it, the first one's included."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from .. import _aiohttp
from ..broadcast import Broadcast, Consumer, StalledError
from ..failures import copied
from .coding import Coding

# Small chunks that are there already go together, up to so many bytes (m: a stream of 1 KiB chunks is a fifth cheaper
# for each reader than if its handler wrote them to it).
_BATCH: Final = 0x10000


class Source(Protocol):
    """What is read: a stream."""

    broadcast: Broadcast

    def coding(self, encoding: str, strategy: int | None) -> Coding:
        """The coding of its chunks, the same one for all who negotiated it."""
        ...

    def detach(self, reader: "Reader") -> None:
        """This reader reads no more."""
        ...


class BrokenOffError(ConnectionAbortedError):
    """The stream cannot be read to its end by this request; its connection is closed."""


class Reader:
    """Takes what a stream gives, and writes it to the connection of one request.

    With `has_all` it begins with what comes next. `leave()` has to be called at the end, whatever happened.
    """

    __slots__ = (
        "_coding", "_ends_with_connection", "_is_sending", "_wake", "_why", "consumer", "request", "stream"
    )  # fmt: skip

    def __init__(self, stream: Source, request: web.Request, *, has_all: bool = False) -> None:
        self.stream: Source = stream
        self.request: web.Request = request
        self.consumer: Consumer = stream.broadcast.join(self._on_ready, has_all=has_all)
        self._coding: Coding | None = None
        # What it waits on while there is nothing to take; and whether it may be waiting for its connection instead.
        self._wake: asyncio.Future[None] | None = None
        self._is_sending = False
        self._ends_with_connection = False
        # Why it was broken off.
        self._why: BaseException | None = None

    def progress(self) -> object:
        """Something that changes when the client reads."""
        return _aiohttp.unsent(self.request)

    @property
    def failed(self) -> BaseException | None:
        """Why there will be no more than what was read, if so."""
        return self._why or self.consumer.exception

    def negotiated(self, encoding: str, strategy: int | None) -> None:
        """Take the compressed form of all chunks."""
        self._coding = self.stream.coding(encoding, strategy)

    def use(self, coding: Coding | None) -> None:
        """Take this form of all chunks."""
        self._coding = coding

    async def send(
        self,
        writer: AbstractStreamWriter,
        write: Callable[[Any], Awaitable[None]] | None = None,
        drain: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Write all that comes to the writer.

        `write` and `drain` are for the writer of the request that runs the handler, as its methods are not its own now;
        it also ends its compressed form itself. Raises what writing does, and what `failure` gives for a stream that
        broke.
        """
        writes_many = write is None and _aiohttp.writes_many(writer)
        write = write or writer.write
        self._ends_with_connection = not _aiohttp.is_delimited(writer)
        # Where another door's readers, or somebody who collects the body, get it, these are told by the exception.
        self._is_sending = _aiohttp.is_writer(writer)
        consumer, coding = self.consumer, self._coding
        # No more at once than that others can tell whether it reads.
        at_once = int(min(_aiohttp.PIECE, self.stream.broadcast.max_buffer / 16))
        try:
            if drain is not None:
                await drain()
            while True:
                chunks = consumer.take_some(at_once)
                if chunks:
                    if coding is None:
                        forms = [chunk.data for chunk in chunks]
                    else:
                        forms = [await coding.of(chunk) for chunk in chunks]
                    pieces = list(_joined(forms))
                    if len(pieces) > 1 and writes_many:
                        await _aiohttp.write_many(writer, pieces)
                    else:
                        for data in pieces:
                            if len(data) <= _aiohttp.PIECE:
                                await write(data)
                            else:
                                await _aiohttp.write_in_pieces(write, data)
                    consumer.has_read(chunks[-1].end)
                elif consumer.at_end:
                    if coding is not None and drain is None:
                        await coding.end(writer, write)
                    return
                elif self._why is not None or consumer.exception is not None:
                    raise self.failure()
                else:
                    await self._more()
        except asyncio.CancelledError:
            if self._ends_with_connection:
                self._abort()
            raise
        finally:
            self._is_sending = False

    async def skip(self) -> None:
        """Wait for the end without writing anything. Raises as `send` does."""
        consumer = self.consumer
        while not consumer.at_end:
            chunk = consumer.take()
            if chunk is not None:
                consumer.has_read(chunk.end)
            elif self._why is not None or consumer.exception is not None:
                raise self.failure()
            elif not consumer.at_end:
                await self._more()

    async def _more(self) -> None:
        self._wake = self.stream.broadcast.loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def failure(self) -> BaseException:
        """What to raise where the stream broke, or this reader was broken off; the connection is closed by then."""
        why = self._why or self.consumer.exception
        assert why is not None
        if self._is_sending:
            self._abort()
        if is_for_all(why):
            return copied(why).with_traceback(why.__traceback__)
        error = BrokenOffError(str(why) or "the handler of this stream did not come to its end")
        if isinstance(why, StalledError):
            error.__cause__ = why
        return error

    def break_off(self, why: str) -> None:
        """This request must not read any further."""
        self.consumer.leave()
        self._why = BrokenOffError(why)
        self._on_ready()

    def leave(self) -> None:
        """Read no more."""
        self.consumer.leave()
        self.consumer.on_ready = _nobody
        if self._wake is not None:
            # Somebody reads it still: nothing more would come, and nobody would say so.
            self._why = self._why or BrokenOffError("the request that this was read for is over")
            self._on_ready()

    def _on_ready(self) -> None:
        if self._wake is not None:
            if not self._wake.done():
                self._wake.set_result(None)
        elif self._is_sending and (self._why is not None or self.consumer.exception is not None):
            # It may be waiting for its client to read: nothing else would wake it.
            self._abort()

    def _abort(self) -> None:
        _aiohttp.abort(self.request, ends_with_connection=self._ends_with_connection)


def _joined(chunks: list[bytes]) -> Iterator[bytes]:
    """The same bytes with small chunks joined, in pieces of `_BATCH` at most; larger ones as they are."""
    batch: list[bytes] = []
    size = 0
    for chunk in chunks:
        if size + len(chunk) > _BATCH and batch:
            yield batch[0] if len(batch) == 1 else b"".join(batch)
            batch, size = [], 0
        if chunk:
            batch.append(chunk)
            size += len(chunk)
    if batch:
        yield batch[0] if len(batch) == 1 else b"".join(batch)


def is_for_all(why: BaseException) -> bool:
    """Whether this is what a handler raised, and not a matter of one connection or task, or of one reader."""
    return isinstance(why, Exception) and not isinstance(why, (web.HTTPException, ConnectionError, StalledError))


def _nobody() -> None:
    """Who is to be told of something new where nobody reads any more."""


def is_short(writer: Any) -> bool:
    """Whether less was written than Content-Length says, so that the connection cannot be used again."""
    return bool(writer.length)
