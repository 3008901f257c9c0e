"""The broadcast: one producer of bytes, many consumers, bounded memory. Knows nothing of HTTP.

Every consumer reads from byte 0 at its own pace, also one that joined midway. Chunks are kept by reference, never
copied, in one log for all. While the broadcast is open the log keeps everything, for those who may still join; once
it is closed, what everybody has read is dropped. The producer asks `fits` before each `feed`, and waits for `room`
where the answer is no.

A consumer takes chunks, and says how far it has read of what it took: only that counts. One that has read all that
there is *starves*, until there is more. While the producer is blocked, somebody starves and somebody else does not,
a clock runs; once it has run for `stall_timeout` seconds in all, those who are the furthest behind are cut off: any
number of slow consumers share that one time. In a group of equals each is the furthest behind at some moment: the
time that what was read meanwhile takes at a fair pace does not count.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final

# What a chunk costs beside its bytes: a flood of tiny ones must not hold more memory than is counted.
CHUNK_OVERHEAD: Final = 128
# Where it is not its own limit that blocks a producer but the one for all broadcasts, everybody reads chunk by
# chunk, and each is the slowest at some moment: nobody is cut off before so many seconds at a stretch.
_GRACE: Final = 0.1
# The pace (bytes a second) of a reader that nobody calls slow.
_PACE: Final[float] = 2 * 2**20
# It is given the time for so many bytes at least: no timer is more exact than that (31 ms).
_AT_LEAST: Final = 2**16
# How often it is looked whether the first one reads, before it is cut off.
_LOOKS: Final = 4


class Budget:
    """The bytes that several broadcasts may keep together."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: float) -> None:
        self.limit: float = limit
        self.used: int = 0


class StalledError(Exception):
    """This consumer read so slowly that it held the others up, and was cut off."""


class Chunk:
    """A piece of the stream. `ends_part` says that a part of it (an HTTP chunk, say) ends with this piece.

    `end` is the offset in the stream at which it ends; `forms` are other forms of it (compressed ones) that are kept
    for as long as it is, by whatever names them.
    """

    __slots__ = ("_cost", "_unread", "data", "end", "ends_part", "forms")

    def __init__(self, data: bytes, ends_part: bool, cost: int, end: int, unread: int) -> None:
        self.data: bytes = data
        self.ends_part: bool = ends_part
        self.end: int = end
        self.forms: dict[Hashable, bytes] | None = None
        self._cost = cost
        # How many consumers have not read it yet.
        self._unread = unread


class Broadcast:
    """One producer's bytes for many consumers.

    - `max_buffer`: the most bytes that are kept, and by which the producer runs ahead of the slowest consumer.
    - `budget`: what this broadcast and others may keep together; where it is spent, nobody can join any more, and
      the producer waits until all that there is was read.
    - `stall_timeout`: seconds for which slow consumers may hold up starving ones, summed over the broadcast.
    - `first_timeout`: the same for the consumer that `watch_first` was told of, if it reads nothing at all meanwhile;
      less (a fifth at least) in the first four times that long.
    - `resume_at`: what part of `max_buffer` may still be kept when a producer that waited goes on. With less than all
      of it readers get many chunks at once, where they would be woken for each.
    - `on_close` is called once when nobody can join any more, `on_desert` when the last consumer left before the end.
    """

    __slots__ = (
        "_began", "_budget", "_consumers", "_dropped", "_first", "_first_timeout", "_first_timer", "_held", "_log",
        "_low", "_progress", "_room", "_size", "_stall_left", "_stall_timer", "_stalled_at", "_stalled_since",
        "_starving", "_total", "_waiting", "ended", "exception", "is_open", "loop", "max_buffer", "on_close",
        "on_desert",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        max_buffer: float,
        budget: Budget,
        stall_timeout: float = 5.0,
        first_timeout: float = 5.0,
        resume_at: float = 1.0,
        on_close: Callable[[], None] | None = None,
        on_desert: Callable[[], None] | None = None,
    ) -> None:
        self.is_open: bool = True
        self.ended: bool = False
        self.exception: BaseException | None = None
        self.on_close = on_close
        self.on_desert: Callable[[], None] | None = on_desert
        self.loop: asyncio.AbstractEventLoop = loop
        self.max_buffer: float = max_buffer
        self._low = max_buffer * resume_at
        self._budget = budget
        self._log: deque[Chunk] = deque()
        # How many chunks were dropped from the front, how many bytes the log holds, how many were ever fed.
        self._dropped = 0
        self._held = 0
        self._total = 0
        self._consumers: dict[Consumer, None] = {}
        # Those who took all that there is, and are to be told of more; and how many have read all of it.
        self._waiting: dict[Consumer, None] = {}
        self._starving = 0
        # Set while the producer waits for room for `_size` bytes.
        self._room: asyncio.Future[None] | None = None
        self._size = 0
        self._stall_left = stall_timeout
        # Since when the clock runs, and where the log began then.
        self._stalled_since: float | None = None
        self._stalled_at = 0
        self._stall_timer: asyncio.TimerHandle | None = None
        # The one who is given less time, something that changes when it reads, and the timer.
        self._first: Consumer | None = None
        self._progress: Callable[[], object] | None = None
        self._first_timeout = first_timeout
        self._began = loop.time()
        self._first_timer: asyncio.TimerHandle | None = None

    @property
    def consumers(self) -> int:
        """How many have joined and neither left nor come to the end."""
        return len(self._consumers)

    @property
    def held(self) -> int:
        """The bytes that the log holds, with what each chunk costs beside."""
        return self._held

    @property
    def total(self) -> int:
        """The bytes that were fed."""
        return self._total

    # The producer's side.

    def fits(self, size: int) -> bool:
        """Whether a chunk of so many bytes may be fed now; where it may not, the broadcast is closed to make room."""
        if self._fits(size):
            return True
        if self.is_open:
            self.close()
            return self._fits(size)
        return False

    async def room(self, size: int) -> None:
        """Wait until a chunk of so many bytes fits. Only one may wait at a time."""
        while not self.fits(size):
            self._size = size
            self._room = self.loop.create_future()
            self._watch_for_stall()
            try:
                await self._room
            finally:
                self._room = None
                self._stop_stall()

    def feed(self, data: bytes, *, ends_part: bool = False) -> Chunk | None:
        """Add a chunk; empty only where it ends a part. Consumers that wait for it are told before this returns.

        Returns the chunk, or None where nobody reads and nobody can join, so that it is not kept.
        """
        consumers = len(self._consumers)
        if not consumers and not self.is_open:
            return None
        self._total += len(data)
        cost = len(data) + CHUNK_OVERHEAD
        self._held += cost
        self._budget.used += cost
        chunk = Chunk(data, ends_part, cost, self._total, consumers)
        self._log.append(chunk)
        self._starving = 0
        self._tell_waiting()
        return chunk

    def keep(self, chunk: Chunk, name: Hashable, form: bytes) -> None:
        """Keep another form of a chunk that the log holds, for as long as it holds it."""
        if chunk.forms is None:
            chunk.forms = {}
        chunk.forms[name] = form
        if self._log and chunk.end >= self._log[0].end:
            chunk._cost += len(form)
            self._held += len(form)
            self._budget.used += len(form)
            if self._held > self.max_buffer or self._budget.used > self._budget.limit:
                self.close()

    def finish(self, *, linger: bool = False) -> None:
        """The stream is complete. With `linger` it can still be joined, until `close`."""
        if self.exception is None:
            self.ended = True
            if not linger:
                self.close()
            self._tell_waiting()

    def fail(self, exception: BaseException) -> None:
        """The stream broke: nobody gets any more of it."""
        if self.ended or self.exception is not None:
            return
        self.exception = exception
        self.close()
        self._waiting, self._starving = {}, 0
        self._drop_all()
        self._wake_producer()
        consumers = list(self._consumers)
        for consumer in consumers:
            consumer.exception = exception
        for consumer in consumers:
            if consumer in self._consumers:
                consumer.on_ready()
        self._consumers.clear()
        self._first = self._progress = None

    def close(self) -> None:
        """Nobody joins any more, and what everybody has read is dropped."""
        if self.is_open:
            self.is_open = False
            self._trim()
            if self.on_close is not None:
                on_close, self.on_close = self.on_close, None
                on_close()

    # The consumers' side.

    def join(self, on_ready: Callable[[], None], *, has_all: bool = False) -> "Consumer":
        """A consumer that reads from byte 0, or with `has_all` from what is fed next.

        `on_ready` is called when there is something new for it. Raises RuntimeError if the broadcast is closed: look
        at `is_open` first.
        """
        if not self.is_open:
            raise RuntimeError("this broadcast is closed")
        consumer = Consumer(self, on_ready)
        self._consumers[consumer] = None
        if has_all:
            consumer._taken = consumer._passed = self._dropped + len(self._log)
        else:
            for chunk in self._log:
                chunk._unread += 1
        if not self._log or has_all:
            self._starving += 1
            self._waiting[consumer] = None
        return consumer

    def watch_first(self, consumer: "Consumer", progress: Callable[[], object]) -> None:
        """Give this consumer, one at most, `first_timeout` seconds only; `progress` gives what changes as it reads."""
        self._first, self._progress = consumer, progress

    def _take(self, consumer: "Consumer") -> Chunk | None:
        if consumer not in self._consumers:
            return None
        index = consumer._taken - self._dropped
        if index < len(self._log):
            consumer._taken += 1
            return self._log[index]
        if self.ended:
            self._leave(consumer)
            consumer.at_end = True
        else:
            self._waiting[consumer] = None
        return None

    def _pass(self, consumer: "Consumer", offset: int) -> None:
        if consumer not in self._consumers:
            return  # it is counted as gone already
        log = self._log
        index = consumer._passed - self._dropped
        taken = consumer._taken - self._dropped
        before = index
        while index < taken and log[index].end <= offset:
            log[index]._unread -= 1
            index += 1
        if index != before:
            consumer._passed = index + self._dropped
            self._starving += index == len(log)
            if not self.is_open:
                self._trim()
            if self._room is not None:
                self._watch_for_stall()

    def _leave(self, consumer: "Consumer") -> None:
        if consumer not in self._consumers:
            return
        del self._consumers[consumer]
        if consumer is self._first:
            self._first = self._progress = None
        if self.exception is not None:
            return
        self._waiting.pop(consumer, None)
        first = consumer._passed - self._dropped
        self._starving -= first == len(self._log)
        for index in range(first, len(self._log)):
            self._log[index]._unread -= 1
        if not self.is_open:
            self._trim()
        if self._stalled_since is not None and not self._starving:
            self._stop_stall()
        if not self._consumers and not self.ended:
            self._wake_producer()
            if self.on_desert is not None:
                self.on_desert()

    # What both move.

    def _fits(self, size: int) -> bool:
        if not self._log and not self.is_open:
            return True  # all that there is was read: the next chunk goes straight through
        cost = size + CHUNK_OVERHEAD
        return self._held + cost <= self.max_buffer and self._budget.used + cost <= self._budget.limit

    def _trim(self) -> None:
        log = self._log
        freed = 0
        while log and not log[0]._unread:
            freed += log.popleft()._cost
            self._dropped += 1
        if freed:
            self._held -= freed
            self._budget.used -= freed
            if self._room is not None and self._held <= self._low and self._fits(self._size):
                self._wake_producer()

    @property
    def _begin(self) -> int:
        """The offset at which the log begins."""
        return self._log[0].end - len(self._log[0].data) if self._log else self._total

    def _drop_all(self) -> None:
        self._budget.used -= self._held
        self._held = 0
        self._dropped += len(self._log)
        self._log.clear()

    def _wake_producer(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _tell_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for consumer in waiting:
            if consumer in self._consumers:
                consumer.on_ready()

    def _watch_for_stall(self) -> None:
        if self._stall_timer is not None or not self._starving or self._starving == len(self._consumers):
            return
        self._stalled_since, self._stalled_at = self.loop.time(), self._begin
        own = self._held + self._size + CHUNK_OVERHEAD > self.max_buffer
        delay = self._stall_left if own else max(self._stall_left, _GRACE)
        fair = max(self._log[0]._cost, _AT_LEAST) / _PACE
        self._stall_timer = self.loop.call_later(delay + fair, self._cut_off)
        if self._first is not None:
            self._time_first(0)

    def _time_first(self, idle: int) -> None:
        # A part of the time for which the stream has been going on, so that a short one is not held up for long.
        timeout = min(self._first_timeout, max(self._first_timeout / 5, (self.loop.time() - self._began) / 4))
        self._first_timer = self.loop.call_later(timeout / _LOOKS, self._look_at_first, self._progress_of_first(), idle)

    def _look_at_first(self, before: object, idle: int) -> None:
        # Several looks, each in a pass of its own: a loop that was busy must not look like a reader that is not.
        self._first_timer = None
        first = self._first
        if first is None:
            return
        if first._passed != self._dropped or self._progress_of_first() != before:
            self._time_first(0)
        elif idle + 1 < _LOOKS:
            self._time_first(idle + 1)
        else:
            self._cut(first)

    def _progress_of_first(self) -> object:
        assert self._first is not None
        assert self._progress is not None
        return self._first._passed, self._progress()

    def _stop_stall(self) -> None:
        if self._first_timer is not None:
            self._first_timer.cancel()
            self._first_timer = None
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._stalled_since is not None:
            stalled = self.loop.time() - self._stalled_since - (self._begin - self._stalled_at) / _PACE
            self._stall_left = max(0.0, self._stall_left - max(0.0, stalled))
            self._stalled_since = None

    def _cut_off(self) -> None:
        """Cut off those who have the most to read."""
        self._stall_timer = None
        self._stop_stall()
        if self._log and not self._fits(self._size):
            slowest = [consumer for consumer in self._consumers if consumer._passed == self._dropped]
            for consumer in slowest:
                if consumer in self._consumers:
                    self._cut(consumer)
        if self._fits(self._size):
            # Others may have given back what they kept meanwhile, and nobody had to be cut off.
            self._wake_producer()
        else:
            self._watch_for_stall()  # the next ones are given their time as well, if only for what they have to read

    def _cut(self, consumer: "Consumer") -> None:
        self._leave(consumer)
        consumer.exception = StalledError(
            "this reader was cut off: it held up the other readers of the same transfer for too long"
        )
        consumer.on_ready()


class Consumer:
    """One reader of a broadcast.

    `at_end` says that it has taken everything, `exception` why there will be no more: the stream broke, or it was
    cut off (`StalledError`).
    """

    __slots__ = ("_broadcast", "_passed", "_taken", "at_end", "exception", "on_ready")

    def __init__(self, broadcast: Broadcast, on_ready: Callable[[], None]) -> None:
        self._broadcast = broadcast
        self.on_ready: Callable[[], None] = on_ready
        self.at_end: bool = False
        self.exception: BaseException | None = None
        # The numbers of the chunks that it takes next, and of the first that it has not read to its end.
        self._taken = 0
        self._passed = 0

    def take(self) -> Chunk | None:
        """The next chunk. None if there is none yet (`on_ready` will be called), at the end or after a failure."""
        if self.exception is not None or self.at_end:
            return None
        return self._broadcast._take(self)

    def take_some(self, size: int) -> list[Chunk]:
        """The next chunks: as many as there are and together hold no more bytes than `size`, but one at least."""
        first = self.take()
        if first is None:
            return []
        chunks = [first]
        end = first.end - len(first.data) + size
        if first.end < end:
            broadcast = self._broadcast
            log, index = broadcast._log, self._taken - broadcast._dropped
            while index < len(log) and log[index].end <= end:
                chunks.append(log[index])
                index += 1
            self._taken = index + broadcast._dropped
        return chunks

    def has_read(self, offset: int) -> None:
        """The bytes before this offset are read; only then are they dropped for the sake of this consumer."""
        if self.exception is None and not self.at_end:
            self._broadcast._pass(self, offset)

    def leave(self) -> None:
        """Read no more. Harmless if it is over already."""
        self._broadcast._leave(self)
