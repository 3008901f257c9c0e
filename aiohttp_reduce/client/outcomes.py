"""What the members of a flight are given: each its own response, or its own exception.

There are four cases. The body was there with the head: everybody gets a response that holds it (`Whole`); one that is
alone gets the genuine response (`ForOne`). The body is on its way: everybody reads it from a broadcast (`Streamed`).
The answer is endless, or a connection to be taken over: one gets it, the others ask for themselves (`ForOne`, and
`StreamedForOne` where the genuine response is not of that one's class). The request failed: everybody gets a copy of
the exception (`Failure`).
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aiohttp import (
    EMPTY_PAYLOAD,
    ClientRequest,
    ClientResponse,
    ClientResponseError,
    ClientTimeout,
    StreamReader,
)

from .. import _aiohttp
from .._aiohttp import WHOLE, Head, Mould, ReaderProtocol
from ..broadcast import Broadcast, Consumer
from ..failures import copied
from ..policy import Verdict
from .reading import Reading, nothing

if TYPE_CHECKING:
    from .flights import OutgoingFlight

Part = tuple[bytes, bool]
"""A piece of a body, and whether an HTTP chunk ends with it."""


class Outcome:
    """How a flight ended, or what its head was.

    `request` is the one that was sent, `herd` how many the outcome is for. Callers say by `future` what they waited
    with (None: they came later), and by `is_own` whether it was they who started the flight.
    """

    __slots__ = ("herd", "request")

    is_open = False
    """Whether latecomers may join."""
    is_for_one = False
    """Whether those who are given nothing ask for themselves at once. (They come back to the door otherwise.)"""

    def __init__(self, flight: "OutgoingFlight", herd: int = 1) -> None:
        self.request: ClientRequest = flight.subject
        self.herd: int = herd

    def response_at_once(
        self, request: ClientRequest, future: "asyncio.Future[Any] | None", *, is_own: bool
    ) -> ClientResponse | None:
        """The response of one caller, if it can be made without waiting. (A coroutine less in the most common cases.)

        None where it cannot: ask `response_for` then.
        """
        return None

    async def response_for(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        """The response of a caller who was given none at once; None where there is none for it."""
        return None

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        """A member that waited with this future was woken, and left before it asked for its response."""


class Failure(Outcome):
    """The request failed. A caller that was alone gets the exception itself, all others copies of it."""

    __slots__ = ("_traceback", "exception", "timeout")

    def __init__(self, flight: "OutgoingFlight", exception: BaseException, herd: int = 1) -> None:
        super().__init__(flight, herd)
        self.timeout: ClientTimeout = flight.timeout
        self.exception: BaseException = exception
        self._traceback = exception.__traceback__

    def exception_for(self, request: ClientRequest, *, is_own: bool) -> BaseException:
        """What the caller of this request raises, with its own `request_info` where there is one."""
        if self.herd == 1 and is_own:
            return self.exception
        # With the traceback of the request that failed, and nothing of what other callers made of it since.
        twin = copied(self.exception).with_traceback(self._traceback)
        if twin is not self.exception and isinstance(twin, ClientResponseError):
            twin.request_info = request.request_info
            twin.args = (request.request_info, *twin.args[1:])
        return twin


class ForOne(Outcome):
    """The genuine response goes to one, who waited with `winner`; it reads by its own clock, as without us.

    None where it is for nobody who is still there.
    """

    __slots__ = ("_response", "_winner")

    is_for_one = True

    def __init__(
        self, flight: "OutgoingFlight", response: ClientResponse | None, winner: "asyncio.Future[Any] | None"
    ) -> None:
        super().__init__(flight)
        self._response = response
        self._winner = winner

    def response_at_once(
        self, request: ClientRequest, future: "asyncio.Future[Any] | None", *, is_own: bool
    ) -> ClientResponse | None:
        response = self._taken_by(future)
        if response is not None:
            _aiohttp.hand_over(response, request, is_own=is_own)
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
    """A head that everybody gets. `verdict` names headers in which a caller must agree with what was sent."""

    __slots__ = ("head", "verdict")

    def __init__(self, flight: "OutgoingFlight", head: Head, verdict: Verdict, herd: int) -> None:
        super().__init__(flight, herd)
        self.head: Head = head
        self.verdict: Verdict = verdict


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

    def response_at_once(
        self, request: ClientRequest, future: "asyncio.Future[Any] | None", *, is_own: bool
    ) -> ClientResponse | None:
        mould = self._mould
        if mould is None or request.response_class is not ClientResponse:
            return None
        reader = self.head.reader_for(request, WHOLE)
        if reader is not EMPTY_PAYLOAD:
            _aiohttp.fill_whole(reader, self._parts, self._source)
        return mould.cast(request, reader)

    async def response_for(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        def fill(reader: StreamReader) -> None:
            _aiohttp.fill_whole(reader, self._parts, self._source)

        protocol = ReaderProtocol(self.head, nothing, nothing, nothing)
        return await self.head.response_for(request, protocol, fill)


class Streamed(Shared):
    """The body is on its way, through a broadcast. `seats` are the places of those who waited for the head."""

    __slots__ = ("broadcast", "response", "seats", "source")

    def __init__(
        self,
        flight: "OutgoingFlight",
        head: Head,
        verdict: Verdict,
        members: Iterable["asyncio.Future[Any]"],
        broadcast: Broadcast,
        response: ClientResponse,
    ) -> None:
        self.broadcast: Broadcast = broadcast
        self.response: ClientResponse = response
        self.source: StreamReader = response.content
        # Whenever they come to it, they read from byte 0.
        self.seats: dict[asyncio.Future[Any], Consumer] = {future: broadcast.join(nothing) for future in members}
        super().__init__(flight, head, verdict, len(self.seats))

    @property
    def is_open(self) -> bool:  # type: ignore[override]
        return self.broadcast.is_open

    async def response_for(self, request: ClientRequest, future: "asyncio.Future[Any] | None") -> ClientResponse | None:
        consumer = None if future is None else self.seats.pop(future, None)
        if consumer is None:
            if not self.broadcast.is_open:
                return None
            consumer = self.broadcast.join(nothing)
        try:
            return await Reading(self.head, self.source, consumer).response_for(request)
        except BaseException:
            consumer.leave()
            raise

    def give_up(self, future: "asyncio.Future[Any]") -> None:
        consumer = self.seats.pop(future, None)
        if consumer is not None:
            consumer.leave()


class StreamedForOne(Streamed):
    """An endless answer for a caller with a response class of its own: it alone reads it, from the first byte."""

    __slots__ = ()

    is_for_one = True
