"""Requests without sockets that know who they are, and a virtual loop that is stepped by hand, for the models."""

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiohttp import EMPTY_PAYLOAD, HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tests.virtual import VirtualLoop

_PATIENCE = 10_000


class SteppedLoop(VirtualLoop):
    """A virtual loop whose time stands still, but for `advance`."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: list[Any] = []
        self.set_exception_handler(lambda _loop, context: self.problems.append(context))

    def run_pass(self) -> None:
        """Run what is ready now, once."""
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self) -> None:
        """Run until nothing is ready; fails if there is no end of it."""
        for _ in range(_PATIENCE):
            self.run_pass()
            if not self._ready and self.next_timer() > self.time():
                return
        raise AssertionError("something spins")

    def next_timer(self) -> float:
        """When the next timer is due; infinity for none."""
        return min((timer.when() for timer in self._scheduled if not timer.cancelled()), default=float("inf"))

    def advance(self, seconds: float) -> None:
        """Let so much time pass, settling at each timer that is due on the way, and at the end."""
        until = self.time() + seconds
        while self.next_timer() <= until:
            self._virtual.now = max(self.time(), self.next_timer())
            self.settle()
        self._virtual.now = until
        self.settle()


class Moment(NamedTuple):
    """When something happened, by the loop's clock, and after how many other things."""

    time: float
    tick: int


class Moments:
    """Gives out moments, no two of which are the same."""

    def __init__(self, loop: SteppedLoop) -> None:
        self._loop = loop
        self._ticks = itertools.count(1)

    def now(self) -> Moment:
        return Moment(self._loop.time(), next(self._ticks))


class Transport:
    """A connection's transport: it is open until it is closing."""

    closing = False

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, _name: str, default: Any = None) -> Any:
        return default

    def abort(self) -> None:
        self.closing = True

    close = abort


class _Protocol:
    """A connection; `visit` is whoever made the request on it."""

    ssl_context = None
    peername = ("127.0.0.1", 1)
    sockname = ("127.0.0.1", 80)
    _close = False
    _force_close = False
    max_field_size = max_line_length = 8190
    max_headers = 128
    _manager = SimpleNamespace(handler_cancellation=False)

    def __init__(self, visit: Any, transport: Transport) -> None:
        self.visit = visit
        self.transport: Transport | None = transport


class Writer(AbstractStreamWriter):
    """Keeps what was sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.body = b""
        self.heads = self.ends = 0

    async def write(self, chunk: Any, **_options: Any) -> None:
        self.body += bytes(chunk)

    async def write_eof(self, chunk: bytes = b"") -> None:
        self.body += chunk
        self.ends += 1

    async def drain(self) -> None:
        pass

    def enable_compression(self, encoding: str = "deflate", strategy: int | None = None) -> None:
        pass

    def enable_chunking(self) -> None:
        pass

    async def write_headers(self, status_line: str, headers: "CIMultiDict[str]") -> None:
        self.heads += 1
        self.status = int(status_line.split(" ", 2)[1])
        self.headers = headers.copy()


def request_of(
    visit: Any, loop: asyncio.AbstractEventLoop, method: str, target: str, headers: dict[str, str]
) -> tuple[web.Request, Transport, Writer]:
    """A request on a connection of its own, that has no body, and what is at the other end of it."""
    transport, writer = Transport(), Writer()
    sent = CIMultiDictProxy(CIMultiDict({"Host": "localhost", **headers}))
    raw = tuple((name.encode(), value.encode()) for name, value in sent.items())
    message = RawRequestMessage(method, target, HttpVersion11, sent, raw, False, None, False, False, URL(target))
    protocol: Any = _Protocol(visit, transport)
    task: Any = None
    return web.Request(message, EMPTY_PAYLOAD, protocol, writer, task, loop), transport, writer
