"""What the tests of the broadcast share: chunks, readers and producers by hand, in virtual time."""

import asyncio
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiohttp_reduce.broadcast import CHUNK_OVERHEAD, Broadcast, Budget, Chunk, StalledError
from tests.virtual import VirtualLoop, run_virtually

# A piece of so many bytes costs 1,000 in all: what is held can be counted at a glance.
SIZE = 1_000 - CHUNK_OVERHEAD


def pieces(count: int, size: int = SIZE) -> list[bytes]:
    return [b"%06d" % number + bytes(size - 6) for number in range(count)]


def opened(
    loop: Any = None, *, max_buffer: float = math.inf, budget: Budget | None = None, **options: Any
) -> Broadcast:
    loop = loop or asyncio.get_running_loop()
    return Broadcast(loop, max_buffer=max_buffer, budget=budget or Budget(math.inf), **options)


class Reader:
    """A consumer that notes what it took."""

    def __init__(self, broadcast: Broadcast) -> None:
        self.got: list[Chunk] = []
        self.told = 0
        self.ready = asyncio.Event()
        self.consumer = broadcast.join(self.on_ready)

    def on_ready(self) -> None:
        self.told += 1
        self.ready.set()

    @property
    def data(self) -> list[bytes]:
        return [chunk.data for chunk in self.got]

    @property
    def offset(self) -> int:
        return sum(map(len, self.data))

    @property
    def is_cut_off(self) -> bool:
        return isinstance(self.consumer.exception, StalledError)

    def take(self, chunks: float = math.inf) -> list[bytes]:
        before = len(self.got)
        while len(self.got) - before < chunks and (chunk := self.consumer.take()) is not None:
            self.got.append(chunk)
        return self.data[before:]

    def read(self, chunks: float = math.inf) -> list[bytes]:
        taken = self.take(chunks)
        self.consumer.has_read(self.offset)
        return taken

    async def read_on(self, chunks: float = math.inf, *, pause: float = 0.0) -> None:
        """Read to the end, or so many chunks; each takes `pause` seconds."""
        while chunks > 0:
            self.ready.clear()
            if self.take(1):
                if pause:
                    await asyncio.sleep(pause)
                self.consumer.has_read(self.offset)
                chunks -= 1
            elif self.consumer.at_end or self.consumer.exception is not None:
                return
            else:
                await self.ready.wait()


async def produce(broadcast: Broadcast, stream: Iterable[bytes]) -> None:
    for data in stream:
        if not broadcast.fits(len(data)):
            await broadcast.room(len(data))
        broadcast.feed(data)
    broadcast.finish()


def feed_while_it_fits(broadcast: Broadcast, stream: Iterator[bytes]) -> int:
    """Feed until the broadcast says no; returns how many chunks it took. The refused one is lost."""
    fed = 0
    for data in stream:
        if not broadcast.fits(len(data)):
            break
        broadcast.feed(data)
        fed += 1
    return fed


async def settled() -> None:
    """Let everything run that needs no time."""
    for _ in range(6):
        await asyncio.sleep(0)


def timers(loop: VirtualLoop) -> list[Any]:
    return [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]


def in_virtual_time(test: Callable[..., Any]) -> Callable[..., None]:
    """Run an `async def test(loop, ...)` in virtual time, and check that it leaves no timer behind."""

    def run(**arguments: Any) -> None:
        async def main(loop: VirtualLoop) -> None:
            await test(loop, **arguments)
            assert not timers(loop)

        run_virtually(main)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    # What pytest reads: the marks, and the arguments without the loop.
    run.pytestmark = getattr(test, "pytestmark", [])  # type: ignore[attr-defined]
    _, *others = inspect.signature(test).parameters.values()
    run.__signature__ = inspect.Signature(others)  # type: ignore[attr-defined]
    return run
