"""Streamed answers: what followers are given while the body is still on its way.

A handler that prepares its response and writes to it lands its flight with the head: who waited, and whoever comes as
long as the stream can be joined, reads the body from its first byte (`reading.py`) while the handler goes on
(`producing.py`).
"""

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from .. import _aiohttp
from ..async_reduce_core import Wake
from ..broadcast import Broadcast, Budget
from ..stats import Unshared
from .coding import Coding
from .last_call import LAST_CALL_AFTER
from .producing import Producer
from .reading import Reader, is_for_all, is_short
from .reads import Reads, RecordedHeaders
from .replay import Answer, Asker, Rules

if TYPE_CHECKING:
    from .table import RequestFlight

logger: logging.Logger = logging.getLogger("aiohttp_reduce")

# Seconds for which the one whose handler runs may hold up others without reading anything at all.
_FIRST_TIMEOUT: Final = 0.5
# (m: 20 readers of a stream of 64 KiB chunks cost 0.9 of what they do if the handler goes on as soon as it can.)
_RESUME_AT: Final = 0.25


class Limits:
    """What the streams of one table may keep (bytes): each of them, and all together."""

    __slots__ = ("budget", "loop", "max_buffer")

    def __init__(self, loop: asyncio.AbstractEventLoop, max_buffer: float, budget: Budget) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.max_buffer: float = max_buffer
        self.budget: Budget = budget

    def broadcast(self) -> Broadcast:
        """A broadcast within these limits."""
        return Broadcast(
            self.loop,
            max_buffer=self.max_buffer,
            budget=self.budget,
            first_timeout=_FIRST_TIMEOUT,
            resume_at=_RESUME_AT,
        )


def _has_an_outcome(future: "asyncio.Future[Any]") -> bool:
    return future.done() and (future.cancelled() or not isinstance(future.result(), Wake))


class Stream(Answer):
    """An answer whose head is known, and whose body is on its way.

    `run` is the run of the handler, with what it has looked at so far. `eof` says that the handler ended the body
    itself, `members` whose the readers of followers are.
    """

    __slots__ = (
        "_closing", "_codings", "_flight", "_noted", "_response", "broadcast", "eof", "hedge", "members", "producer",
        "run",
    )  # fmt: skip

    is_stream = True

    def __init__(
        self,
        run: RecordedHeaders,
        response: web.StreamResponse,
        *,
        raised: bool = False,
        rules: Rules,
        share: bool | None,
        has_key: bool,
        limits: Limits,
    ) -> None:
        super().__init__(run.request, response, raised=raised, rules=rules, share=share, has_key=has_key)
        self.run: RecordedHeaders | None = run
        self.broadcast: Broadcast = limits.broadcast()
        self.members: dict[Reader, Asker] = {}
        # What one of those leads who lost it: the others join that.
        self.hedge: RequestFlight | None = None
        self.eof: bool = False
        self.producer: Producer | None = None
        self._response: web.StreamResponse | None = response
        self._codings: dict[tuple[str, int | None], Coding] = {}
        self._flight: RequestFlight | None = None
        self._closing: asyncio.TimerHandle | None = None
        # How many things the handler had looked at when that was last compared.
        self._noted = 0

    def undo_preparing(self, response: web.StreamResponse) -> None:
        """Leave to each follower's own answer what aiohttp has done to this one while it was prepared."""
        _aiohttp.undo_preparing(response, self.leader, self._headers, self._fields)

    # Joining.

    def open_with(self, flight: "RequestFlight", now: float) -> None:
        """Take those who wait for the flight, and then whoever comes until it closes."""
        self._flight = flight
        for future, asker in list(flight.waiters.items()):
            if asker is not None and not _has_an_outcome(future) and self.refuses(asker) is None:  # type: ignore[arg-type]
                self.attach(asker)  # type: ignore[arg-type]
        flight.stream = self
        flight.table.streams.add(flight.subject.path, self)
        self.broadcast.on_close = self._closed
        if flight.closes <= now:
            self.close()
        elif flight.closes != math.inf:
            self._closing = self.broadcast.loop.call_later(flight.closes - now, self.close)

    def close(self) -> None:
        """Nobody joins any more."""
        self.broadcast.close()

    def _closed(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.table.streams.remove(flight.subject.path, self)
            flight.close()

    def refuses(self, asker: Asker) -> tuple[Unshared, str | None] | None:
        self.look_again()
        refusal = super().refuses(asker)
        self.free = False
        if refusal is None and (asker.seat is None or asker.seat.stream is not self) and not self.broadcast.is_open:
            return Unshared.STREAM, None
        return refusal

    def attach(self, asker: Asker) -> None:
        """Give a follower its seat, from which it reads from the first byte on, if it has none yet."""
        if asker.seat is None or asker.seat.stream is not self:
            if asker.seat is not None:
                asker.seat.stream.detach(asker.seat)
            asker.seat = reader = Reader(self, asker.request)
            self.members[reader] = asker
            self.share()

    def detach(self, reader: Reader) -> None:
        """A follower reads no more."""
        reader.leave()
        self.members.pop(reader, None)

    def share(self) -> None:
        """Somebody else reads as well from now on."""
        if self.producer is not None:
            self.producer.share()

    def coding(self, encoding: str, strategy: int | None, compressor: _aiohttp.Compressor | None = None) -> Coding:
        """The coding of the body, the same one for all who negotiated it; `compressor` is what to make it with."""
        key = (encoding, strategy)
        coding = self._codings.get(key)
        if coding is None:
            compressor = compressor or _aiohttp.Compressor.of(encoding, strategy)
            coding = self._codings[key] = Coding(self.broadcast, compressor)
        return coding

    def look_again(self) -> None:
        """Break those off who differ in what the handler has looked at meanwhile: it may decide what comes next."""
        run = self.run
        if run is None:
            return
        _aiohttp.note_looked_up(run)
        notes = run.kept_notes
        if notes is None:
            return
        noted = len(notes.names) + len(notes.items) + len(notes.written)
        if noted == self._noted and not notes.items:
            return
        before = self.reads if noted == self._noted else None
        self._noted = noted
        self.free: bool = False
        reads = self._rules.reads(run)
        self.reads: Reads | None = reads
        assert reads is not None
        if before is not None and before.changed == reads.changed:
            return  # all members were compared with this, when it was noted or when they came
        if reads.written is not None:
            # Their own request mappings will not have it; but what was read so far is not wrong.
            self.close()
        for reader, asker in list(self.members.items()):
            refusal = reads.refuses(self.leader, asker.request, asker.mapping)
            if refusal is None:
                reads.pass_on(asker.request)
            else:
                self.members.pop(reader)
                asker.turned_away(self, *refusal)
                said = ": ".join([part for part in refusal if part])
                reader.break_off(f"the handler looked at something that is different for this request ({said})")

    # The end.

    def finish(self) -> None:
        """The body is complete."""
        if not self.broadcast.ended and self.broadcast.exception is None:
            self.look_again()
            flight = self._flight
            lingers = (
                flight is not None and self.broadcast.is_open and flight.table.clock() - flight.opened > LAST_CALL_AFTER
            )
            self.broadcast.finish(linger=lingers)
            if lingers:
                assert flight is not None
                flight.table.last_call.begin(flight, self)

    def fail(self, exception: BaseException) -> None:
        """The body breaks off here."""
        if not self.broadcast.ended and self.broadcast.exception is None:
            self.broadcast.fail(exception)
            if self.producer is not None:
                self.producer.break_off()

    async def handler_ended(self, response: Any) -> None:
        """The handler returned; this waits until the connection of its request was given everything."""
        assert self.producer is not None
        if response is not self._response:
            self.handler_failed(RuntimeError("the handler returned another response than the one that it had prepared"))
            return
        try:
            await self.producer.end()
        except ConnectionError as exception:
            # The handler came to its end all the same. aiohttp will find out by itself that the client is gone.
            logger.debug("the first requester did not read to the end: %r", exception)
        self._let_go()

    def handler_failed(self, exception: BaseException) -> None:
        """The handler raised, or was cancelled."""
        self.fail(exception)
        if self.producer is not None:
            self.producer.stop()
        self._let_go()

    def _let_go(self) -> None:
        """Of what was needed while the handler ran, so that nothing has to be found by a garbage collection."""
        self.run = self.producer = self._response = None

    def is_lost_to(self, asker: Asker) -> bool:
        """Whether a follower that has sent nothing yet has to look for another answer, as this one broke off.

        What the handler itself raised is for it, as any other exception is.
        """
        why = None if asker.seat is None else asker.seat.failed
        return why is not None and not is_for_all(why)

    def seated(self, made: Any, asker: Asker) -> Any:
        """A follower that has its seat goes on with this in place of what `make` gave it."""
        return made

    async def deliver(self, response: web.StreamResponse, asker: Asker) -> web.StreamResponse:
        """Send a follower its own answer as its handler would have: prepared, written, and ended if that ended it."""
        request, reader = asker.request, asker.seat
        assert reader is not None
        asker.seat = None
        try:
            _aiohttp.take_coding(response, reader.negotiated)
            await response.prepare(request)
            writer = _aiohttp.writer_of(response)
            if _aiohttp.has_no_body(request, response):
                await reader.skip()
            else:
                assert writer is not None
                await reader.send(writer)
                if is_short(writer) and (self.eof or not isinstance(response, web.Response)):
                    response.force_close()
            if self.eof:
                await web.StreamResponse.write_eof(response)
            return response
        except ConnectionError as exception:
            if _aiohttp.connection_is_open(request):
                raise
            # As a handler that takes no notice of a client that is gone; aiohttp will. But doors further out may have
            # others who read this, and it was not the whole.
            if not reader.consumer.at_end and (writer := _aiohttp.writer_of(response)) is not None:
                for producer in _aiohttp.all_over(writer):
                    producer.breaks(exception)
            logger.debug("%s does not read to the end: %r", request.path, exception)
            return response
        finally:
            self.detach(reader)
            if self.reads is not None:
                self.reads.pass_on(request)
