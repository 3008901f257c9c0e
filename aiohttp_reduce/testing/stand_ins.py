"""What stands in for that which runs, and waits before it does: aiohttp's own handler, a coroutine."""

from asyncio import AbstractEventLoop
from collections.abc import Coroutine, Generator, Hashable
from typing import Any, Protocol

from aiohttp import ClientRequest, ClientResponse

from ..client.door import ReduceClientMiddleware
from ..stats import Counters
from .runs import Run, sent_run


class Holder(Protocol):
    """What a block is to the calls that come by."""

    loop: AbstractEventLoop

    def selects(self, call: Any, name: Hashable) -> bool:
        """Whether a call is of those that it holds; `name` is its path, or its ident or function."""

    def came(self) -> None:
        """A call that it selects has come, and goes its way before the next pass of the loop."""

    def hold(self, run: Run) -> bool:
        """Hold a run. False if it holds none any more."""

    def let_go(self, run: Run) -> None:
        """The run is not held any more, for whatever reason."""

    async def released(self) -> None:
        """Wait until the hold is released."""


async def wait(holders: list[Holder], run: Run) -> None:
    """Hold a run until all who hold it release it."""
    holding = [holder for holder in holders if holder.hold(run)]
    try:
        for holder in holding:
            await holder.released()
    finally:
        for holder in holding:
            holder.let_go(run)


class Sending:
    """Stands for aiohttp's own handler, of which the door reads the closure's cells."""

    def __init__(self, door: ReduceClientMiddleware, holders: list[Holder], handler: Any) -> None:
        self.__code__ = handler.__code__
        self.__closure__ = handler.__closure__
        self.__module__ = handler.__module__
        self._door = door
        self._holders = holders
        self._handler = handler

    async def __call__(self, request: ClientRequest) -> ClientResponse:
        # A flight sends a copy of its own; a request that is bypassed, or asks for itself, is sent as it is.
        for flight in self._door._tables.get().running:
            if flight.subject is request:
                await wait(self._holders, sent_run(flight, self._door._settings.identities))
                break
        response: ClientResponse = await self._handler(request)
        return response


class Call(Coroutine[Any, Any, Any]):
    """Stands for a coroutine, of which the reducer reads what it is identified by, and runs it when it may."""

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self._coro = coro
        self._running: Coroutine[Any, Any, Any] | None = None
        self._holders: list[Holder] = []
        self._run: Run | None = None
        self._counters = Counters()
        self.is_closed = False

    def lead(self, holders: list[Holder], run: Run, counters: Counters) -> None:
        """It is the one of its flight that runs."""
        self._run, self._counters = run, counters
        self._holders = [holder for holder in holders if holder.hold(run)]

    async def _execute(self) -> Any:
        try:
            try:
                for holder in self._holders:
                    await holder.released()
            finally:
                self._let_go()
            return await self._coro
        except Exception:
            self._counters.errors += 1
            raise
        finally:
            self._counters.ended += 1

    def _let_go(self) -> None:
        if self._run is not None:
            for holder in self._holders:
                holder.let_go(self._run)

    def _begun(self) -> Coroutine[Any, Any, Any]:
        if self._running is None:
            self._running = self._execute()
        return self._running

    def send(self, value: Any) -> Any:
        return self._begun().send(value)

    def throw(self, *args: Any) -> Any:
        return self._begun().throw(*args)

    def close(self) -> None:
        """It joins, or its flight has ended."""
        self.is_closed = True
        if self._running is not None:
            self._running.close()
        elif self._run is not None:
            self._let_go()
            self._run = None
            self._counters.ended += 1
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._begun().__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coro, name)

    def __repr__(self) -> str:
        return repr(self._coro)
