"""The figures of `tests.chaos`, and what is noise in it."""

import asyncio
import gc
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from unittest import mock

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from tests.chaos_app import BrokenError, OddError
from tests.chaos_clients import Figures

# KiB that the process may have grown by between the first third and the end: caches of aiohttp's and
# what allocators do not give back come and go by some MiB, and a leak of 1 KiB a request would be 50 MiB in 5 minutes.
MAY_GROW: Final = 8 * 1024
# What handlers raise here, and what becomes of the connections of those that left.
RAISED: Final = (
    BrokenError, OddError, ConnectionError, TimeoutError, aiohttp.ClientError, asyncio.CancelledError,
    HttpProcessingError,
)  # fmt: skip

# What aiohttp itself says of a body or file that breaks off, of a handler that returns nothing, and (in its shutdown)
# of a handler that ends in the moment in which it is no longer waited for.
OF_AIOHTTP: Final = {
    "Connection closed.", "Transport is closing", "'NoneType' object has no attribute 'prepare'", "invalid state",
}  # fmt: skip


@dataclass
class Report:
    """What became of the requests, and what is left at the end, beyond what there was at the beginning."""

    figures: Figures = field(default_factory=Figures)
    servers: int = 0
    totals: dict[str, int] = field(default_factory=dict)
    tasks: int = 0
    sockets: int = 0
    flights: int = 0
    buffered: int = 0
    calls: int = 0
    # (seconds since the beginning, KiB), after each server.
    memory: list[tuple[float, int]] = field(default_factory=list)
    # What the loop's exception handler, the log and the interpreter were told.
    noise: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """KiB between the end of the first third and the end, each the least of some moments."""
        third, enough = len(self.memory) // 3, max(1, len(self.memory) // 10)
        return min(kib for _, kib in self.memory[-enough:]) - min(kib for _, kib in self.memory[third : third + enough])

    def problems(self) -> list[str]:
        """All that should not be."""
        counts = self.figures.counts
        problems = [*self.figures.wrong, *self.noise[:20]]
        problems += [f"{name}: {counts[name]}" for name in ("wrong", "hung", "lost") if counts[name]]
        left = {name: getattr(self, name) for name in ("tasks", "sockets", "flights", "buffered", "calls")}
        problems += [f"{name} left: {count}" for name, count in left.items() if count]
        problems += [f"never happened: {name}" for name in ("answered", "collapsed") if not counts[name]]
        return problems

    def __str__(self) -> str:
        counts = self.figures.counts
        lines = [
            f"requests {counts['requests']}: answered {counts['answered']} ({counts['collapsed']} by another's run), "
            f"broken by the client {counts['broken_by_client']}, by the server {counts['broken_by_server']} "
            f"(and {counts['broken_as_without_us']} unseen by HTTP/1.0), slow readers cut off "
            f"{counts['cut_off']}",
            f"wrong bodies {counts['wrong']}, hung {counts['hung']}, lost {counts['lost']}; "
            f"longest wait {self.figures.longest:.1f} s",
            f"{self.servers} servers: " + ", ".join(f"{name} {count}" for name, count in self.totals.items()),
            f"left: tasks {self.tasks}, sockets {self.sockets}, flights {self.flights}, "
            f"streamed bytes {self.buffered}, calls {self.calls}",
            f"memory: {self.memory[0][1] // 1024} to {self.memory[-1][1] // 1024} MiB, from the first third on "
            f"{self.growth / 1024:+.1f} MiB (limit {MAY_GROW // 1024})",
            f"unexpected exceptions, log records and warnings: {len(self.noise)}",
        ]
        return "\n".join(lines + self.problems())


class _Noise(logging.Handler):
    """Notes what should not be logged."""

    def __init__(self, noise: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._noise = noise

    def emit(self, record: logging.LogRecord) -> None:
        exception = record.exc_info and record.exc_info[1]
        if record.name == "aiohttp.server" and (
            exception is None or isinstance(exception, RAISED) or str(exception) in OF_AIOHTTP
        ):
            return
        where = "".join(traceback.format_tb(exception.__traceback__)[-2:]) if exception else ""
        self._noise.append(f"{record.name}: {record.getMessage()} {exception!r}"[:300] + where)


def _last_line(exception: BaseException | None) -> str:
    return "".join(traceback.format_tb(exception.__traceback__)[-1:]) if exception else ""


@contextmanager
def listening(noise: list[str]) -> Iterator[None]:
    """Note what the loop, the log and the interpreter complain of."""
    loop = asyncio.get_running_loop()

    def complain(_: Any, context: Mapping[str, Any]) -> None:
        if isinstance(context.get("exception"), OddError):
            return  # the end of its connection's task, as without us
        if "_empty_waiter" in (line := _last_line(context.get("exception"))):
            return  # asyncio's own, where a connection breaks after sending a file over it was given up
        if aiohttp.__version__.startswith("3.12.") and str(context.get("exception")) == "Connection lost":
            return  # its own, where a connection breaks after a write to it was given up
        noise.append(f"loop: {context}"[:600] + line)

    def unraisable(what: Any) -> None:
        noise.append(f"unraisable: {what.exc_value!r} in {what.object!r}")

    def warn(message: Any, category: Any, *_: Any, **__: Any) -> None:
        if "unclosed file" not in str(message):  # of a FileResponse that is cancelled while it opens its file
            noise.append(f"warning: {category.__name__}: {message}")

    handler = _Noise(noise)
    logs = [logging.getLogger(name) for name in ("aiohttp_reduce", "asyncio", "aiohttp.server")]
    loop.set_exception_handler(complain)
    try:
        with (
            mock.patch.object(sys, "unraisablehook", unraisable),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("always")
            warnings.showwarning = warn
            for log in logs:
                log.addHandler(handler)
                log.propagate = False
            yield
            gc.collect()
    finally:
        loop.set_exception_handler(None)
        for log in logs:
            log.removeHandler(handler)
            log.propagate = True
