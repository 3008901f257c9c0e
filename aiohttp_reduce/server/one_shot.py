"""Answers with a body that can be read only once: an async generator, a file object, any such payload.

The handler has returned, and nothing was sent yet. If nobody else is there when the first requester's answer is sent,
the body is written straight through to it, and kept for those who may still join. Otherwise it is read in a task of
its own, with the context variables that the handler had, and everybody is served from the broadcast.
"""

import asyncio
import contextvars
import logging
import weakref
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from .. import _aiohttp
from .leading import Settings
from .producing import Producer
from .reading import BrokenOffError, Reader, is_short
from .reads import RecordedHeaders, RecordedState
from .replay import Asker
from .streams import Stream

logger = logging.getLogger("aiohttp_reduce")


class OneShot(Stream):
    """An answer whose body is read once, for all."""

    __slots__ = ("_body", "_context", "_own", "_settings", "_task")

    def __init__(
        self, run: RecordedHeaders, response: web.StreamResponse, *, settings: Settings, **options: Any
    ) -> None:
        super().__init__(run, response, **options)
        assert isinstance(response, web.Response)
        assert isinstance(response.body, Payload)
        self._body = response.body
        self._settings = settings
        self._context = contextvars.copy_context()
        # The body of the first requester's answer, and the task that reads for all.
        self._own: weakref.ref[SharedBody] | None = None
        self._task: asyncio.Task[None] | None = None

    def take_body(self, response: web.Response) -> None:
        """Put ourselves in the place of the body in the handler's own response."""
        body = SharedBody(self, self._body, self.leader, None)
        self._own = weakref.ref(body)
        self._put_body(response, body)

    def share(self) -> None:
        if self.producer is not None:
            self.producer.share()
        elif self._own is not None and (body := self._own()) is not None:
            body.needs_seat()

    def seated(self, made: Any, asker: Asker) -> Any:
        reader, asker.seat = asker.seat, None
        self._put_body(made, SharedBody(self, self._body, asker.request, reader))
        return made

    async def deliver(self, made: Any, asker: Asker) -> web.StreamResponse:
        response: web.StreamResponse = made
        return response

    def _put_body(self, response: web.Response, body: "SharedBody") -> None:
        _aiohttp.put_body(response, body)
        if response.compression:
            _aiohttp.take_coding(response, body.negotiated)

    async def write_alone(self, writer: AbstractStreamWriter, coding: tuple[str, int | None] | None) -> None:
        """Read the body in the first requester's own task, for it and for whoever joins."""
        self.producer = Producer(self, self.leader, writer, None if coding is None else self.coding(*coding), heads=1)
        await self._produce(self.producer)
        if self.producer.tail:
            await writer.write(self.producer.tail)

    def read_for_all(self) -> None:
        """Read the body in a task of its own, if that is not done yet."""
        if self._task is None and self.producer is None:
            self.producer = Producer(self, self.leader, None, None, heads=1)
            self.broadcast.on_desert = self._deserted
            self._task = self.broadcast.loop.create_task(self._read_for_all(self.producer), context=self._context)

    async def close_body(self) -> None:
        """The first requester's answer was sent: close the body, unless it is read for others."""
        if self._task is None:
            await self._body.close()

    def dropped(self) -> None:
        """Nobody will send the first requester's answer: others have replaced it."""
        if not self.members and self.producer is None:
            self.close()

    def _deserted(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _read_for_all(self, producer: Producer) -> None:
        try:
            await self._produce(producer)
        except Exception as exception:
            logger.debug("the body of an answer broke off: %r; everybody who reads is told", exception)
        finally:
            await self._body.close()

    async def _produce(self, producer: Producer) -> None:
        """Write the body to the producer; what it looks at is noted as the handler's was."""
        run, notes = self.run, self.run.notes
        _aiohttp.lend(run.request, run, RecordedState(), self._settings.kept)
        run.notes = notes
        try:
            await self._body.write(producer)  # type: ignore[arg-type]
        except BaseException as exception:
            self.handler_failed(exception)
            raise
        finally:
            _aiohttp.take_back(run.request, run)
        await producer.end()


class SharedBody(Payload):
    """Stands for a body that is read once, in the answer of one request. Its own of it comes from its reader.

    Otherwise it is like the body that it stands for.
    """

    def __init__(self, stream: OneShot, body: Payload, request: web.Request, reader: Reader | None) -> None:
        self._stream = stream
        self._body = body
        self._request = request
        self._reader = reader
        self._coding: tuple[str, int | None] | None = None

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return self._body.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    @property
    def size(self) -> int | None:
        return self._body.size

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._body.decode(encoding, errors)

    def negotiated(self, encoding: str, strategy: int | None) -> None:
        """The answer goes out in this coding."""
        self._coding = (encoding, strategy)

    def needs_seat(self) -> None:
        """Others read as well, and nobody has begun."""
        if self._reader is None:
            self._reader = Reader(self._stream, self._request)
            self._stream.broadcast.watch_first(self._reader.consumer, self._reader.progress)

    async def write(self, writer: AbstractStreamWriter, *args: Any, **kwargs: Any) -> None:
        reader = self._reader
        if reader is None:
            await self._stream.write_alone(writer, self._coding)
            return
        if self._coding is not None:
            reader.negotiated(*self._coding)
        self._stream.read_for_all()
        try:
            await reader.send(writer)
        finally:
            self._stream.detach(reader)
        if is_short(writer):
            raise BrokenOffError("the body is shorter than its Content-Length")

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        await self.write(writer)

    async def close(self) -> None:
        if self._reader is None:
            await self._stream.close_body()
        else:
            self._stream.detach(self._reader)

    def __del__(self) -> None:
        if self._reader is not None:
            self._stream.detach(self._reader)
        else:
            self._stream.dropped()
