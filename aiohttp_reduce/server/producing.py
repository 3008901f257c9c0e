"""Producing a shared stream: what stands in the place of the writer to which a handler, or a body, writes.

There are three states. *Alone*: nobody else reads; every chunk goes straight through to the request's own writer,
with its back-pressure and its exceptions, and is kept as well for those who may still join. *Shared*: chunks go to
the broadcast alone, and the request's own connection is served by a reader like everybody's. *Over*: the handler has
ended; what its middlewares still write goes straight through.
"""

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientConnectionResetError, web

from .. import _aiohttp
from .coding import Coding
from .reading import Reader

if TYPE_CHECKING:
    from .streams import Stream

# As aiohttp's own writer: so much is written before it is looked whether the client reads.
_LIMIT: Final = 0x10000


class Producer:
    """A writer whose bytes are everybody's.

    `real` is the writer of the request that runs the handler, None where the body is produced for nobody in
    particular; `coding` is what that request negotiated. `heads` says how many heads were written already.
    """

    def __init__(self, stream: "Stream", request: web.Request, real: Any, coding: Coding | None, heads: int) -> None:
        self._stream = stream
        self._request = request
        self.real = real
        self._own: Any = None if real is None else _aiohttp.Takeover(real)
        self._coding = coding
        self._heads = heads
        self.is_over = False
        # What is still to be sent of the compressed form, with the end.
        self.tail = b""
        # The own reader of the request, and its task, once the stream is shared.
        self._reader: Reader | None = None
        self._pump: asyncio.Task[None] | None = None
        self._pump_error: BaseException | None = None
        # What a write waits on while it is the request's own connection that has to be waited for.
        self._drained: asyncio.Future[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    @property
    def _is_alone(self) -> bool:
        return self._pump is None and self.real is not None

    def take_over(self) -> None:
        """Get all that is written to the request's writer, whoever has that."""
        self._own.install(self)

    def share(self) -> None:
        """Somebody else reads now: let this request's connection hold nobody up any more."""
        if self._pump is None and self.real is not None and not self.is_over:
            self._reader = Reader(self._stream, self._request, has_all=True)
            self._stream.broadcast.watch_first(self._reader.consumer, self._reader.progress)
            self._reader.use(self._coding)
            self._pump = self._stream.broadcast.loop.create_task(self._serve(self._reader))
            if self._drained is not None and not self._drained.done():
                self._drained.set_result(None)

    async def write_headers(self, status_line: str, headers: Any) -> None:
        self._heads += 1
        if self._heads > 1 and not self.is_over:
            self._stream.fail(RuntimeError("the handler began another response in the midst of this one"))
        await self._own.write_headers(status_line, headers)

    async def write(self, chunk: Any, *, drain: bool = True, LIMIT: int = _LIMIT) -> None:
        if self.is_over or not self._heads:
            await self._own.write(chunk, drain=drain, LIMIT=LIMIT)
            return
        data = chunk if type(chunk) is bytes else bytes(chunk)
        if self._is_alone:
            await self._write_alone(data, drain, LIMIT)
        elif data:
            await self._write_shared(data)

    async def write_eof(self, chunk: Any = b"") -> None:
        if self.is_over:
            self.release()
            await self._own.write_eof(self.tail + bytes(chunk))
            return
        self._stream.eof = True
        data = chunk if type(chunk) is bytes else bytes(chunk)
        if self._is_alone:
            if data:
                data = await self._keep(data)
            if self._pump is not None:  # since then
                await self._own.write(data)
            else:
                self._stream.finish()
                if self._coding is not None:
                    data += self._coding.last()
                self.is_over = True
                self.release()
                await self._own.write_eof(data)
                return
        elif data:
            await self._write_shared(data)
        await self.end()
        if self.real is not None:
            await self._own.write_eof()

    async def drain(self) -> None:
        if self.is_over:
            await self._own.drain()
        elif self._is_alone:
            await self._drain()

    async def end(self) -> None:
        """The body is complete: wait until this request's connection was given all of it. Raises what that raises."""
        self._stream.finish()
        if self._pump is not None and not self.is_over:
            try:
                await asyncio.wait([self._pump])
            finally:
                self.stop()
            if self._pump_error is not None:
                raise self._pump_error
        elif not self.is_over and self._coding is not None:
            self.tail = self._coding.last()
        self.is_over = True
        if not self.tail:
            self.release()

    def release(self) -> None:
        """What is written to the request's writer is no matter of ours any more."""
        if self._own is not None:
            self._own.undo()

    def stop(self) -> None:
        """The handler has ended: nothing more comes from it."""
        self.is_over = True
        if self._pump is not None:
            self._pump.cancel()
        if self._reader is not None:
            self._reader.leave()
        self.release()

    async def _write_alone(self, data: bytes, drain: bool, limit: int) -> None:
        if data:
            data = await self._keep(data)
            if not data:
                return
        await self._own.write(data, drain=False)
        if drain and self.real.buffer_size > limit:
            self.real.buffer_size = 0
            await self._drain()

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
        self._drained = drained = self._stream.broadcast.loop.create_future()

        def done(waiter: "asyncio.Future[None]") -> None:
            if not drained.done():
                if waiter.exception() is None:
                    drained.set_result(None)
                else:
                    drained.set_exception(waiter.exception())  # type: ignore[arg-type]

        waiter.add_done_callback(done)
        try:
            await drained
        finally:
            self._drained = None
            waiter.remove_done_callback(done)

    async def _write_own(self, data: Any) -> None:
        # As the writer's own `write` does; its `drain` is ours now.
        await self._own.write(data, drain=False)
        if self.real.buffer_size > _LIMIT:
            self.real.buffer_size = 0
            await self._own.drain()

    async def _write_shared(self, data: bytes) -> None:
        broadcast = self._stream.broadcast
        self._stream.look_again()
        if not broadcast.fits(len(data)):
            await broadcast.room(len(data))
        if not broadcast.consumers:
            await self._write_to_nobody(data)
        broadcast.feed(data)

    async def _write_to_nobody(self, data: bytes) -> None:
        """Fail as aiohttp does where a handler writes to a client that is gone."""
        if self.real is not None and self._pump_error is not None:
            await self._own.write(data)
        raise ClientConnectionResetError("Cannot write to closing transport")

    async def _serve(self, reader: Reader) -> None:
        try:
            await self._own.drain()
            await reader.send(self.real, self._write_own)
        except Exception as exception:
            self._pump_error = exception
        finally:
            reader.leave()
