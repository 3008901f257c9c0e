"""Producing a shared stream: what stands in the place of a writer's methods while a handler, or a body, writes.

There are three states. *Alone*: nobody else reads; every chunk goes straight through to the request's own connection,
with its back-pressure and its exceptions, and is kept as well for those who may still join. *Shared*: chunks go to
the broadcast alone, and the request's own connection is served by a reader like everybody's. *Over*: the handler has
ended, or nobody can join any more; the writer has its own methods back.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientConnectionResetError, web
from aiohttp.abc import AbstractStreamWriter

from .. import _aiohttp
from .coding import Coding
from .reading import BrokenOffError, Reader

if TYPE_CHECKING:
    from .streams import Stream

# As aiohttp's own writer: so much is written before it is looked whether the client reads.
_LIMIT: Final = 0x10000


class Producer:
    """A writer whose bytes are everybody's.

    `real` is the writer of the request that runs the handler, None where the body is produced for nobody in
    particular; `coding` is what that request negotiated, `heads` how many heads were written already.
    """

    def __init__(self, stream: "Stream", request: web.Request, real: Any, coding: Coding | None, heads: int) -> None:
        self._stream = stream
        self._request = request
        self.real = real
        # The writer's own methods.
        self._own: Any = None if real is None else _aiohttp.Takeover(real)
        self._coding = coding
        self._heads = heads
        self.is_over: bool = False
        # The own reader of the request, and its task, once the stream is shared.
        self._reader: Reader | None = None
        self._pump: asyncio.Task[None] | None = None
        self._pump_error: Exception | None = None
        self._has_served = False
        # What writes wait on while it is the request's own connection that has to be waited for.
        self._drained: set[asyncio.Future[None]] = set()
        # Several tasks may write: who has to wait for room keeps the others behind it.
        self._turn = asyncio.Lock()

    # As a writer that is handed to a body.

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return AbstractStreamWriter if self.real is None else self.real.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(AbstractStreamWriter if self.real is None else self.real, name)

    @property
    def length(self) -> int | None:
        """What is counted is what the request's own connection was given, which may come later."""
        return None

    @property
    def chunked(self) -> bool:
        """Whether those who read can tell where the body ends."""
        return self.real is None or _aiohttp.is_delimited(self.real)

    # The states.

    @property
    def _is_alone(self) -> bool:
        return self._pump is None and self.real is not None

    def take_over(self) -> None:
        """Get all that is written to the request's writer, whoever has that."""
        self._own.install(self)

    def share(self) -> None:
        """Somebody else reads now: let this request's connection hold nobody up any more."""
        if self._is_alone and not self.is_over:
            self._reader = reader = Reader(self._stream, self._request, has_all=True)
            reader.use(self._coding)
            self._stream.broadcast.watch_first(reader.consumer, reader.progress)
            self._pump = self._stream.broadcast.loop.create_task(self._serve(reader))
            for drained in self._drained:
                if not drained.done():
                    drained.set_result(None)

    async def end(self) -> None:
        """The body is complete: wait until this request's connection was given all of it. Raises what that raises."""
        self._stream.finish()
        if self._pump is not None and not self.is_over:
            try:
                await asyncio.wait([self._pump])
            except asyncio.CancelledError:
                # It has not been given everything, and must not be ended as if it had.
                if not self._pump.done():
                    self._abort()
                raise
            finally:
                self.stop()
            if self._pump_error is not None:
                raise self._pump_error
        self.stop()

    def stop(self) -> None:
        """Nothing that comes from now on is for others."""
        if self.is_over:
            return
        self.is_over = True
        if self._pump is not None:
            self._pump.cancel()
        if self._reader is not None:
            self._reader.leave()
        if self._own is not None:
            if self._coding is not None and (self._pump is None or self._has_served):
                # Everything was compressed; otherwise the others need it to go on.
                if self._stream.broadcast.ended:
                    self._coding.seal()
                self._coding.give_back(self.real)
            self._own.undo()

    def break_off(self) -> None:
        """The stream broke: this request must not take what it has for the whole either, now that it is shared."""
        if self._pump is not None and not self.is_over and self._heads:
            self._abort()

    def breaks(self, why: BaseException) -> None:
        """What a door further in gives this request breaks off, and the handler may not say so."""
        self._stream.fail(why)

    def _abort(self) -> None:
        _aiohttp.abort(self._request, ends_with_connection=not _aiohttp.is_delimited(self.real))

    # As the writer's methods.

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self._heads += 1
        if self._heads > 1:
            self._stream.fail(RuntimeError("the handler began another response in the midst of this one"))
            self.stop()
        await self._own.write_headers(status_line, headers)

    def send_headers(self) -> None:
        try:
            self._own.send_headers()
        except ConnectionError:
            if self._pump is None:
                raise
            # The client is gone; others read, and its reader will find out.

    async def write(self, chunk: Any, *, drain: bool = True, LIMIT: int = _LIMIT) -> None:
        if not self._heads:
            await self._own.write(chunk, drain=drain, LIMIT=LIMIT)
            return
        if self._has_stopped():
            await self._own.write(chunk, drain=drain, LIMIT=LIMIT)
            return
        data = _as_bytes(chunk)
        if not self._is_alone:
            if data:
                await self._write_shared(data)
            return
        try:
            if data or self._coding is not None:
                data = await self._keep(data)
                if not data:
                    return
            await self._own.write(data, drain=False)
            if drain and self.real.buffer_size > LIMIT:
                self.real.buffer_size = 0
                await self._drain()
        except ConnectionError as exception:
            if self._pump is None:
                self._stream.fail(exception)
                raise
            # Others have joined while it was compressed: they read on, and its reader will find out.

    async def write_eof(self, chunk: Any = b"") -> None:
        if not self._heads:
            await self._own.write_eof(chunk)
            return
        if self._has_stopped():
            await self._own.write_eof(chunk)
            return
        self._stream.eof = True
        data = _as_bytes(chunk)
        if self._is_alone:
            if data:
                data = await self._keep(data)
            if self._pump is not None:  # since then
                with suppress(ConnectionError):  # its reader will find out
                    await self._own.write(data)
            else:
                self._stream.finish()
                if self._coding is not None:
                    self._coding.seal()
                    data += self._coding.flush()
                    self._coding = None
                self.stop()
                await self._own.write_eof(data)
                return
        elif data:
            await self._write_shared(data)
        await self.end()
        if self.real is not None:
            await self._own.write_eof()

    async def drain(self) -> None:
        if self._is_alone:
            await self._drain()

    def _has_stopped(self) -> bool:
        """Whether the writer has its own methods back; it gets them where nobody can join any more and nobody has."""
        if not self.is_over and self._is_alone and not self._stream.broadcast.is_open:
            self.stop()
        return self.is_over

    async def _keep(self, data: bytes) -> bytes:
        """Keep a chunk for those who may join, and return it as this request's connection gets it."""
        broadcast, coding = self._stream.broadcast, self._coding
        broadcast.fits(len(data))
        chunk = broadcast.feed(data)
        if coding is None:
            return data
        return await coding.of_data(data) if chunk is None else await coding.of(chunk)

    async def _drain(self) -> None:
        """Wait until this request's client has read enough, but no longer than nobody else reads."""
        waiter = _aiohttp.drain_waiter(self._request)
        if waiter is None or self._pump is not None:
            return
        drained = self._stream.broadcast.loop.create_future()

        def done(waiter: "asyncio.Future[None]") -> None:
            exception = waiter.exception()
            if not drained.done():
                if exception is None:
                    drained.set_result(None)
                else:
                    drained.set_exception(exception)

        self._drained.add(drained)
        waiter.add_done_callback(done)
        try:
            await drained
        finally:
            self._drained.discard(drained)
            waiter.remove_done_callback(done)

    async def _write_shared(self, data: bytes) -> None:
        broadcast = self._stream.broadcast
        if self._turn.locked() or not broadcast.fits(len(data)):
            async with self._turn:
                try:
                    await broadcast.room(len(data))
                except asyncio.CancelledError:
                    self._feed(data)  # the handler has written it, and may go on without having waited
                    raise
        if not broadcast.consumers:
            gone = self._pump_error or ClientConnectionResetError("Cannot write to closing transport")
            self._stream.fail(gone)
            raise gone
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        self._stream.look_again()
        self._stream.broadcast.feed(data)

    async def _write_own(self, data: Any) -> None:
        # As the writer's own `write` does; its `drain` is ours now.
        await self._own.write(data, drain=False)
        if self.real.buffer_size > _LIMIT:
            self.real.buffer_size = 0
            await self._own.drain()

    async def _serve(self, reader: Reader) -> None:
        try:
            await reader.send(self.real, self._write_own, self._own.drain)
            self._has_served = True
        except Exception as exception:
            self._pump_error = exception
        except asyncio.CancelledError:
            if not self.is_over:
                self._pump_error = BrokenOffError("what this request reads was cancelled")
            raise
        finally:
            reader.leave()
            if self._pump_error is not None:
                # It must not be ended as if this had been the whole.
                self._abort()
                for producer in self._own.further_out():
                    producer.breaks(self._pump_error)


def _as_bytes(chunk: Any) -> bytes:
    """A chunk that nobody can change any more. Raises TypeError as aiohttp's writer does."""
    if type(chunk) is bytes:
        return chunk
    len(chunk)
    return bytes(chunk)
