"""One application served twice, without us and with us, and what the same requests get of both."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Connection, Gate, Reply, Server, Start, eventually

Build = Callable[[list[Any], Gate], Awaitable[web.Application]]
"""Makes the application. The first argument is what stands in the place of our middleware: it, or nothing."""


@dataclass
class Ask:
    """A request."""

    target: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def ask(target: str = "/", headers: dict[str, str] | None = None, **options: Any) -> Ask:
    """A request; `method` and `host` are options."""
    return Ask(target, headers or {}, options)


class Twice:
    """`plain` is the application without us, `ours` with us; each waits for a gate of its own."""

    def __init__(self, plain: Server, plain_gate: Gate, ours: Server, gate: Gate, see: Callable[[str], str]) -> None:
        self.plain = plain
        self.ours = ours
        self.gate = gate
        self._plain_gate = plain_gate
        self._see = see

    async def of_plain(self, asked: Ask) -> Reply:
        """What the application answers without us."""
        self._plain_gate.open()
        return await self.plain.get(asked.target, asked.headers, **asked.options)

    async def is_the_same(self, *asked: Ask) -> None:
        """Each request, asked alone, is answered as without us."""
        self.gate.open()
        for one in asked:
            reply = await self.ours.get(one.target, one.headers, **one.options)
            assert "Cache-Status" not in reply.headers
            self.compare(one, reply, await self.of_plain(one))

    async def meet(self, *asked: Ask, runs: int) -> list[Reply]:
        """Requests that are all in flight at once take so many runs, and each is answered as without us."""
        before = self.gate.runs
        self.gate.close()
        sent: list[Connection] = []
        for number, one in enumerate(asked, 1):
            sent.append(await self.ours.send(one.target, one.headers, **one.options))
            await eventually(lambda number=number: self._arrived(before) == number)  # type: ignore[misc]
        self.gate.open()
        replies = [
            await connection.receive(head_only=one.options.get("method") == "HEAD")
            for connection, one in zip(sent, asked, strict=True)
        ]
        for one, reply in zip(asked, replies, strict=True):
            self.compare(one, reply, await self.of_plain(one))
        await eventually(self.ours.nothing_is_left)
        assert self.gate.runs - before == runs
        return replies

    def compare(self, asked: Ask, reply: Reply, expected: Reply) -> None:
        """Two answers are the same in everything but Date, and Cache-Status, which is ours."""
        assert expected.status != 500  # a broken application would be the same twice
        assert self._seen(reply) == self._seen(expected), asked

    def _seen(self, reply: Reply) -> Any:
        headers = [
            (name, self._see(value)) for name, value in reply.headers.items() if name not in {"Date", "Cache-Status"}
        ]
        return reply.version, reply.status, reply.reason, sorted(headers), reply.body

    def _arrived(self, before: int) -> int:
        waiting: int = self.ours.figure("waiting")
        return waiting + self.gate.runs - before


async def twice(serve: Start, build: Build, *, see: Callable[[str], str] = str, **options: Any) -> Twice:
    """Serve an application without us and with us. `see` makes of a header's value what is to be the same."""
    middleware = reduce_middleware(**options)
    plain_gate, gate = Gate(), Gate()
    plain = await serve(await build([], plain_gate))
    ours = await serve(await build([middleware], gate), middleware=middleware)
    return Twice(plain, plain_gate, ours, gate, see)


def together(replies: Sequence[Reply]) -> list[str | None]:
    """The Cache-Status of each answer."""
    return [reply.collapsed for reply in replies]


SHARED = "aiohttp-reduce; fwd=miss; collapsed"
UNSHARED = "aiohttp-reduce; fwd=miss; collapsed=?0"
