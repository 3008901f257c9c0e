"""A flight's task: sends the request, hands out the head when it arrives, then passes the body on as it comes."""

import asyncio
import math
from asyncio import CancelledError
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientConnectionError, ClientResponse, StreamReader, hdrs

from .. import _aiohttp
from .._aiohttp import Head
from ..async_reduce_core import PAUSE, launch
from ..broadcast import Broadcast
from ..policy import judge_fetched
from ..stats import Counters
from .flights import OutgoingFlight
from .outcomes import Failure, ForOne, Part, Streamed, StreamedForOne, Whole
from .reading import HungUpError
from .settings import Settings

if TYPE_CHECKING:
    from .calls import Call

_FOR_THE_LOOP: Final = (KeyboardInterrupt, SystemExit)


def start(call: "Call", now: float) -> OutgoingFlight:
    """Start a flight for a call, which is its first member."""
    table, settings, request = call.table, call.settings, call.request
    flight = table.open(call.target, request, call.handler, now)
    flight.waiters = {call.future: call}
    call.flights.append(flight)
    call.started = flight
    if settings.hooks is not None:
        settings.tell("on_executing_for", request)
    flight.task = launch(table.loop, _fly(settings, flight, call.counters))
    return flight


async def _fly(settings: Settings, flight: OutgoingFlight, counters: Counters) -> None:
    table = flight.table
    try:
        await PAUSE
        response = await flight.handler(flight.subject)
        try:
            streamed = None
            members = flight.members()
            if (
                len(members) == 1
                and response.content.is_eof()
                and _may_have(flight, members[0])
                and _agrees(flight, response, members[0])
            ):
                # The most common case: nobody else came, and all is there.
                flight.finish(0, ForOne(flight, response, members[0]))
            elif members:
                streamed = await _land(settings, flight, response, members, counters)
            else:
                # Everybody was cancelled as it arrived, and has not left yet: nobody may join what nobody will end.
                flight.abandon(0)
                response.close()
            if settings.hooks is not None:
                settings.tell("on_result_for", flight.starter, response)
            if streamed is not None:
                await _pass_on(settings, flight, streamed, response)
        except BaseException:
            response.close()
            raise
    except BaseException as exception:
        if asyncio._get_running_loop() is not table.loop:
            flight.close()  # the loop is gone, and with it whoever waited
        elif flight.under_way:
            _fail(settings, flight, counters, exception)
        if isinstance(exception, _FOR_THE_LOOP):
            raise
    finally:
        table.running.discard(flight)
        counters.ended += 1
        # An exception holds this frame, and they all hold the exception.
        flight = members = streamed = response = None  # type: ignore[assignment]


def _fail(settings: Settings, flight: OutgoingFlight, counters: Counters, exception: BaseException) -> None:
    task = asyncio.current_task()
    if isinstance(exception, _FOR_THE_LOOP) or (
        isinstance(exception, CancelledError) and task is not None and task.cancelling()
    ):
        # Not the members' own cancellation: somebody ends all tasks, or the loop.
        exception = ClientConnectionError("Connection closed")
    counters.errors += not isinstance(exception, CancelledError)
    settings.tell("on_exception_for", flight.starter, exception)
    flight.finish(0, Failure(flight, exception, len(flight.members())))


def _agrees(flight: OutgoingFlight, response: ClientResponse, member: "asyncio.Future[Any]") -> bool:
    """Whether Vary cannot keep the answer from this member: it may have stayed when the one that asked left."""
    call: Any = flight.waiters.get(member)
    return hdrs.VARY not in response.headers or (call is not None and call.started is flight)


def _may_have(flight: OutgoingFlight, member: "asyncio.Future[Any]") -> bool:
    """Whether the genuine response may be a member's: it is of the class that was sent with."""
    call: Any = flight.waiters[member]
    return call.request.response_class is flight.subject.response_class


async def _land(
    settings: Settings,
    flight: OutgoingFlight,
    response: ClientResponse,
    members: list["asyncio.Future[Any]"],
    counters: Counters,
) -> Streamed | None:
    """Hand out the head to those who wait for it. Returns what is still to be done for the body."""
    content = response.content
    herd = len(members)
    if herd > 1:
        counters.largest_herd = max(counters.largest_herd, herd)
    verdict = judge_fetched(response.status, response.headers, settings.identities.counts)
    if verdict.reason is not None and not _agrees(flight, response, members[0]):
        # Who asked has left, and it is for nobody else: all who stayed ask for themselves.
        flight.finish(0, ForOne(flight, None, None))
        response.close()
        return None
    if verdict.reason is not None and _may_have(flight, members[0]):
        flight.finish(0, ForOne(flight, response, members[0]))
        return None
    _aiohttp.take_timer_from(response)
    if verdict.reason is None and content.is_eof():
        parts = await _parts_of(content)
        flight.finish(0, Whole(flight, response, verdict, herd, parts))
        return None
    broadcast = Broadcast(
        flight.table.loop,
        max_buffer=settings.max_buffer,
        budget=flight.table.budget,
        on_close=flight.close,
        on_desert=flight.desert,
    )
    head = Head(response, flight.subject)
    if verdict.reason is None:
        streamed = Streamed(flight, head, verdict, members, broadcast, response)
        if response.status >= 300:
            # A caller that asks again, because of what it was told, must not be told the same again.
            broadcast.close()
    else:
        streamed = StreamedForOne(flight, head, verdict, members[:1], broadcast, response)
        broadcast.close()
    flight.table.begin_stream(flight)
    flight.finish(0, streamed, linger=broadcast.is_open)
    return streamed


async def _parts_of(content: StreamReader) -> list[Part]:
    """All that there is of a body that has come to its end; does not wait."""
    parts: list[Part] = []
    while not content.at_eof():
        part = await content.readchunk()
        if part == (b"", False):
            break
        parts.append(part)
    return parts


async def _pass_on(settings: Settings, flight: OutgoingFlight, streamed: Streamed, response: ClientResponse) -> None:
    """Feed the broadcast with the body, at the pace of those who read it."""
    broadcast, content, table = streamed.broadcast, response.content, flight.table
    _aiohttp.hold_less(content)
    closing: asyncio.TimerHandle | None = None

    def hang_up(_lost: object) -> None:
        if not content.is_eof() and content.exception() is None:
            flight.hang_up()

    lost = _aiohttp.connection_closed(response)
    if lost is not None:
        lost.add_done_callback(hang_up)
    try:
        if flight.closes != math.inf:
            left = flight.closes - settings.clock()
            closing = table.loop.call_later(max(0.0, left), broadcast.close)
        while True:
            data, ends_part = await content.readchunk()
            if not data and not ends_part:
                break
            if not broadcast.fits(len(data)):
                await broadcast.room(len(data))
            broadcast.feed(data, ends_part=ends_part)
        broadcast.finish()
    except CancelledError:
        broadcast.fail(HungUpError())
        raise
    except Exception as exception:
        broadcast.fail(exception)
        response.close()
    finally:
        if lost is not None:
            lost.remove_done_callback(hang_up)
        if closing is not None:
            closing.cancel()
        table.end_stream(flight)
        broadcast.on_close = broadcast.on_desert = None
