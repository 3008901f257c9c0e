"""What is held in a block: the calls that come by tell it what becomes of them, and wait for its release."""

import asyncio
from collections.abc import Hashable
from typing import Any

from .runs import Run


class Held:
    """What a `Holder` is: the runs that are held, and what came.

    `only` says which calls are held (see `holding`), `error` what it raised. `loop` is that of the block.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, only: Any) -> None:
        self.only: Any = only
        self.runs: list[Run] = []
        self.arrived: int = 0
        self.not_selected: dict[Hashable, int] = {}
        self.error: Exception | None = None
        self._gate = asyncio.Event()
        self._changes: set[asyncio.Future[None]] = set()

    def selects(self, call: Any, name: Hashable) -> bool:
        """Whether a call is of those that are held."""
        try:
            selected = bool(self.only(call)) if callable(self.only) else self.only in (None, name)
        except Exception as exception:
            self.error = exception
            selected = False
            self._changed()
        if not selected:
            self.not_selected[name] = self.not_selected.get(name, 0) + 1
        return selected

    def came(self) -> None:
        """A call has come; before the next pass of the loop it leads, waits, or goes on."""
        self.loop.call_soon(self._has_arrived)

    def hold(self, run: Run) -> bool:
        """Hold a run, if they were not released."""
        if self.is_released:
            return False
        self.runs.append(run)
        self._changed()
        return True

    def let_go(self, run: Run) -> None:
        """The run goes on, or has ended."""
        self.runs.remove(run)

    @property
    def is_released(self) -> bool:
        """Whether nothing is held any more."""
        return self._gate.is_set()

    def release(self) -> None:
        """Let go of all runs, and of those that come later."""
        self._gate.set()
        self._changed()

    async def released(self) -> None:
        """Wait for the release."""
        await self._gate.wait()

    async def change(self) -> None:
        """Wait until something has come, is held, is released or went wrong."""
        future = self.loop.create_future()
        self._changes.add(future)
        try:
            await future
        finally:
            self._changes.discard(future)

    def _has_arrived(self) -> None:
        self.arrived += 1
        self._changed()

    def _changed(self) -> None:
        for future in self._changes:
            if not future.done():
                future.set_result(None)
