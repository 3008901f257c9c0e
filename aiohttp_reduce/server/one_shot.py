"""Answers with a body that can be read only once: an async generator, a file object, any such payload.

The handler has returned, and nothing was sent yet. If nobody else is there when the first requester's answer is sent,
the body is written straight through to it, and kept for those who may still join. Otherwise it is read in a task of
its own, with the context variables that the handler had, and everybody is served from the broadcast.
"""

import asyncio
import contextvars
import functools
import logging
import weakref
from typing import Any

from aiohttp import ClientConnectionResetError, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from .. import _aiohttp
from .leading import Settings
from .producing import Producer
from .reading import BrokenOffError, Reader
from .reads import NotesAside, RecordedHeaders, RecordedState
from .replay import Asker
from .streams import Stream

logger: logging.Logger = logging.getLogger("aiohttp_reduce")


class OneShot(Stream):
    """An answer whose body is read once, for all."""

    __slots__ = ("_begun", "_body", "_context", "_own", "_settings", "_task", "size")

    def __init__(
        self, run: RecordedHeaders, response: web.StreamResponse, *, settings: Settings, **options: Any
    ) -> None:
        super().__init__(run, response, **options)
        assert isinstance(response, web.Response)
        assert isinstance(response.body, Payload)
        self._body = response.body
        if type(self._body) is SharedBody:
            self._body.is_taken_over = True
        # While it is not closed.
        self.size: int | None = response.body.size
        self.producer: Producer | None = None
        self._settings = settings
        self._context = contextvars.copy_context()
        # Whether the body is being read, or was.
        self._begun = False
        # The body of the first requester's answer, and the task that reads for all.
        self._own: weakref.ref[SharedBody] | None = None
        self._task: asyncio.Task[None] | None = None

    def take_body(self, response: web.Response) -> None:
        """Put ourselves in the place of the body in the handler's own response."""
        self._response = None
        body = SharedBody(self, self._body, self.leader, None)
        self._own = weakref.ref(body)
        self._put_body(response, body)
        if self.run is not None:
            # Whoever comes when the answer is over must not be given it, whether or not it was sent.
            # (A task that is done must not be asked for its coroutine: Python 3.12.1 crashes.)
            task, self.run.task = self.run.task or asyncio.current_task(), None
            assert task is not None
            task.add_done_callback(functools.partial(self._answered, _aiohttp.is_of_connection(task)))

    def share(self) -> None:
        if self.producer is not None:
            self.producer.share()
        elif not self._begun and self._own is not None and (body := self._own()) is not None:
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

    async def write_alone(self, writer: Any, coding: tuple[str, int | None] | None) -> None:
        """Write the body to the first requester, in its own task, and keep it for whoever joins."""
        self._begun = True
        if not _aiohttp.is_writer(writer):
            # Somebody takes the body for something else.
            self.close()
            await self._body.write(writer)
            return
        its = None if coding is None else self.coding(*coding)
        if coding is not None and its is not None and not its.is_for_all:
            writer.enable_compression(*coding)
            its = None
        self.producer = Producer(self, self.leader, writer, its, heads=1)
        self.producer.take_over()
        await self._produce(self.producer, writer)

    def read_for_all(self) -> None:
        """Read the body in a task of its own, if that is not done yet."""
        if not self._begun:
            self._begun = True
            self.producer = Producer(self, self.leader, None, None, heads=1)
            self.broadcast.on_desert = self._deserted
            self._task = self.broadcast.loop.create_task(self._read_for_all(self.producer), context=self._context)

    async def close_body(self) -> None:
        """The first requester's answer was sent: close the body, unless it is read for others."""
        if self._task is None:
            if not self.broadcast.ended:
                self.close()
            await self._body.close()

    def dropped(self) -> None:
        """Nobody will send the first requester's answer: others have replaced it."""
        if not self.members and not self._begun:
            self.close()

    def is_own(self, body: "SharedBody") -> bool:
        """Whether this is the body of the first requester's answer."""
        return self._own is not None and self._own() is body

    def _answered(self, was_sent: bool, task: "asyncio.Task[Any]") -> None:
        if not self._begun:
            self.close()
        if self._own is not None and (body := self._own()) is not None and was_sent:
            body.leave_seat()

    def _deserted(self) -> None:
        # Nobody may join what is not read to its end.
        self.fail(ClientConnectionResetError("Cannot write to closing transport"))
        if self._task is not None:
            self._task.cancel()

    async def _read_for_all(self, producer: Producer) -> None:
        run = self.run
        assert run is not None
        notes = run.taking_notes()
        try:
            # The first requester's own task goes on with this request meanwhile: what it looks at is not noted.
            run.notes = NotesAside(notes, _aiohttp.is_of_connection)
            await self._produce(producer, producer)
        except Exception as exception:
            logger.debug("the body of an answer broke off: %r; everybody who reads is told", exception)
        finally:
            run.notes = notes
            await self._body.close()

    async def _produce(self, producer: Producer, writer: Any) -> None:
        """Write the body to the producer; what it looks at is noted as the handler's was."""
        run = self.run
        assert run is not None
        notes = run.notes
        _aiohttp.lend(run.request, run, RecordedState(), self._settings.kept)
        run.notes = notes
        try:
            await self._body.write(writer)
            await producer.end()
        except BaseException as exception:
            self.handler_failed(exception)
            raise
        finally:
            _aiohttp.take_back(run.request, run)
            self.broadcast.on_desert = None
            self._let_go()


class SharedBody(Payload):
    """Stands for a body that is read once, in the answer of one request. Its own of it comes from its reader.

    Otherwise it is like the body that it stands for. `is_taken_over`: a door further out reads it for its own, or
    closes it, whether or not its request is over.
    """

    is_taken_over = False

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
        return self._stream.size

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self._body.decode(encoding, errors)

    def negotiated(self, encoding: str, strategy: int | None) -> None:
        """The answer goes out in this coding."""
        self._coding = (encoding, strategy)

    def needs_seat(self) -> None:
        """Others read as well, and nobody has begun."""
        if self._reader is None:
            self._reader = Reader(self._stream, self._request)

    def leave_seat(self) -> None:
        """The answer is over, whether or not this was sent."""
        if self._reader is not None and not self.is_taken_over:
            self._stream.detach(self._reader)

    async def write(self, writer: AbstractStreamWriter, *args: Any, **kwargs: Any) -> None:
        reader = self._reader
        if reader is None:
            await self._stream.write_alone(writer, self._coding)
            return
        if self._coding is not None:
            reader.negotiated(*self._coding)
        if self._stream.is_own(self):
            self._stream.broadcast.watch_first(reader.consumer, reader.progress)
        elif self._stream.reads is not None:
            # Those looks that a door further out has missed, between its handler's end and now.
            self._stream.reads.pass_on(self._request)
        self._stream.read_for_all()
        # Where a door further out has taken the writer over, what is counted there may come later.
        length: int | None = writer.length
        try:
            await reader.send(writer)
        finally:
            self._stream.detach(reader)
        if length is not None and self._stream.broadcast.total < length:
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
