"""What the members of a flight are given: each its own response, or its own exception.

There are four cases. The body was there with the head: everybody gets a response that holds it (`Whole`); one that is
alone gets the genuine response (`ForOne`). The body is on its way: everybody reads it from a broadcast (`Streamed`).
The answer is endless, or a connection to be taken over: one gets the genuine response, the others ask for themselves
(`ForOne`). The request failed: everybody gets a copy of the exception (`Failure`).
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import ClientPayloadError, ClientRequest, ClientResponse, ClientResponseError, StreamReader

from .. import _aiohttp
from .._aiohttp import WHOLE, Head, Mould, ReaderProtocol
from ..broadcast import Broadcast, Consumer, StalledError
from ..failures import copied
from ..policy import Verdict

if TYPE_CHECKING:
    from .flights import OutgoingFlight

Part = tuple[bytes, bool]
"""A piece of a body, and whether an HTTP chunk ends with it."""


class Outcome:
    """How a flight ended, or what its head was.

    `starter` is the request of the call that started it, `herd` how many it is for.
    """

    __slots__ = ("herd", "starter")

    is_open = False
    """Whether latecomers may join."""

    def __init__(self, flight: "OutgoingFlight", herd: int = 1) -> None:
        self.starter = flight.starter
        self.herd = herd

    def response_at_once(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        """The response of one member, if it can be made without waiting; `future` is what it waited with.

        None where it cannot: ask `response_for`. (A coroutine less for the most common cases.)
        """
        return None

    async def response_for(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        """The response of one member; None where it has to ask for itself. `future` is None for a latecomer."""
        return None

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        """A member that waited with this future was woken, and left before it asked for its response."""


class Failure(Outcome):
    """The request failed. The first who asks gets the exception itself, the others copies of it."""

    __slots__ = ("_given", "exception", "timeout")

    def __init__(self, flight: "OutgoingFlight", exception: BaseException) -> None:
        super().__init__(flight)
        self.timeout = flight.timeout
        self.exception = exception
        self._given = False

    def exception_for(self, request: ClientRequest) -> BaseException:
        """What the caller of this request raises, with its own `request_info` where there is one."""
        if not self._given:
            self._given = True
            return self.exception
        twin = copied(self.exception)
        if twin is not self.exception:
            twin = twin.with_traceback(self.exception.__traceback__)
            if isinstance(twin, ClientResponseError):
                twin.request_info = request.request_info
                twin.args = (request.request_info, *twin.args[1:])
        return twin


class ForOne(Outcome):
    """The genuine response goes to one, who waited with `winner`; it reads by its own clock, as without us."""

    __slots__ = ("_response", "_winner")

    def __init__(self, flight: "OutgoingFlight", response: ClientResponse, winner: "asyncio.Future[Any]") -> None:
        super().__init__(flight)
        self._response: ClientResponse | None = response
        self._winner: asyncio.Future[Any] | None = winner

    def response_at_once(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        response = self._taken_by(future)
        if response is not None:
            _aiohttp.hand_over(response, request, is_starter=request is self.starter)
        return response

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        response = self._taken_by(future)
        if response is not None:
            response.close()

    def _taken_by(self, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        if future is None or future is not self._winner:
            return None
        response, self._response = self._response, None
        self._winner = None  # whose result this is: together they would wait for the garbage collector
        return response


class Shared(Outcome):
    """A head that everybody gets. `verdict` names headers in which a member must agree with the `request` sent."""

    __slots__ = ("head", "request", "verdict")

    def __init__(self, flight: "OutgoingFlight", head: Head, verdict: Verdict, herd: int) -> None:
        super().__init__(flight, herd)
        self.request = flight.subject
        self.head = head
        self.verdict = verdict


class Whole(Shared):
    """The body was there with the head."""

    __slots__ = ("_mould", "_parts", "_source")

    def __init__(
        self, flight: "OutgoingFlight", response: ClientResponse, verdict: Verdict, herd: int, parts: Sequence[Part]
    ) -> None:
        super().__init__(flight, Head(response, flight.subject), verdict, herd)
        self._parts = parts
        self._source = response.content
        self._mould = Mould.of(response)

    def response_at_once(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        mould = self._mould
        if mould is None or not mould.serves(request):
            return None
        reader = self.head.reader_for(request, WHOLE)
        self._fill(reader)
        return mould.cast(request, reader)

    async def response_for(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        return await self.head.response_for(request, ReaderProtocol(self.head, _nothing, _nothing), self._fill)

    def _fill(self, reader: StreamReader) -> None:
        if not reader.is_eof():  # the empty one is
            _aiohttp.fill_whole(reader, self._parts, self._source)


class Streamed(Shared):
    """The body is on its way, through a broadcast. `seats` are the places of those who waited for the head."""

    __slots__ = ("broadcast", "seats", "source")

    def __init__(
        self,
        flight: "OutgoingFlight",
        head: Head,
        verdict: Verdict,
        members: Iterable["asyncio.Future[Any]"],
        broadcast: Broadcast,
        source: StreamReader,
    ) -> None:
        self.broadcast = broadcast
        self.source = source
        # Whenever they come to it, they read from byte 0.
        self.seats: dict[asyncio.Future[Any], Consumer] = {future: broadcast.join(_nothing) for future in members}
        super().__init__(flight, head, verdict, len(self.seats))

    @property
    def is_open(self) -> bool:  # type: ignore[override]
        return self.broadcast.is_open

    async def response_for(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        consumer = None if future is None else self.seats.pop(future, None)
        if consumer is None:
            if not self.broadcast.is_open:
                return None
            consumer = self.broadcast.join(_nothing)
        reading = Reading(self, consumer)
        protocol = ReaderProtocol(self.head, reading.fill, consumer.leave)
        try:
            return await self.head.response_for(request, protocol, reading.begin)
        except BaseException:
            consumer.leave()
            raise

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        consumer = self.seats.pop(future, None)
        if consumer is not None:
            consumer.leave()


class Reading:
    """One member's reader, filled from the broadcast as it empties."""

    __slots__ = ("_consumer", "_filling", "_reader", "_streamed")

    _reader: StreamReader

    def __init__(self, streamed: Streamed, consumer: Consumer) -> None:
        self._streamed = streamed
        self._consumer = consumer
        self._filling = False

    def begin(self, reader: StreamReader) -> None:
        """Fill this reader from now on."""
        self._reader = reader
        if _aiohttp.reads_in_parts(self._streamed.source):
            reader.begin_http_chunk_receiving()
        self._consumer.on_ready = self.fill
        self.fill()

    def fill(self) -> None:
        """Move on what was read, and feed the reader up to what aiohttp's own would hold."""
        if self._filling:
            return
        self._filling = True
        reader, consumer = self._reader, self._consumer
        try:
            consumer.has_read(reader.total_bytes - _aiohttp.unread(reader))
            while _aiohttp.unread(reader) < self._streamed.head.read_ahead:
                chunk = consumer.take()
                if chunk is None:
                    self._end()
                    return
                _aiohttp.feed(reader, chunk.data, chunk.ends_part)
        finally:
            self._filling = False

    def _end(self) -> None:
        consumer, reader, source = self._consumer, self._reader, self._streamed.source
        if consumer.at_end:
            if not reader.is_eof():
                _aiohttp.copy_compressed_size(reader, source)
                reader.feed_eof()
        elif consumer.exception is not None and reader.exception() is None:
            exception = consumer.exception
            if isinstance(exception, StalledError):
                exception = ClientPayloadError(f"Response payload is not completed: {exception}")
            else:
                exception = copied(exception)
            _aiohttp.break_off(reader, exception)


def _nothing() -> None:
    pass
