"""Corners of who may share a stream: those whom it is decided about while it is open, and whose looks count. Each test
fails without one line that is easily lost."""

import asyncio
from typing import Any

from aiohttp import web

from tests.harness import Start, eventually
from tests.streaming import Tap, Wires, arrived, is_broken, joined, nothing_is_left, streams
from tests.test_streams_isolation import Scopes, received


class Looks(Tap):
    """A tap whose pieces may be functions of the request."""

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in self.pieces():
            await response.write(piece(request) if callable(piece) else piece)
            self.written += 1
        return response


async def test_whoever_has_left_is_not_turned_away_any_more(serve: Start, quiet: list[Any]) -> None:
    tap, wires = Looks(), Wires()
    server = await streams(serve, tap, outer=[wires])
    leader = await server.send("/", {"User-Agent": "a"})
    await eventually(lambda: tap.runs == 1)
    leaving, staying = await server.send("/", {"User-Agent": "b"}), await server.send("/", {"User-Agent": "a"})
    await server.waiting(2)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", leader, leaving, staying)
    address = leaving.writer.get_extra_info("sockname")
    (number,) = [number for number in (1, 2) if wires.protocols[number].transport.get_extra_info("peername") == address]
    wires.cancel(number)
    await wires.disconnected(number)
    tap.let(lambda request: b"two " + request.headers["User-Agent"].encode())  # type: ignore[arg-type]
    tap.end()
    assert [await received(one) for one in (leader, staying)] == [b"one two a"] * 2
    assert server.figure("unshared") == {}
    await nothing_is_left(server)


async def test_whoever_is_broken_off_is_turned_away_once(serve: Start, quiet: list[Any]) -> None:
    tap = Looks()
    server = await streams(serve, tap, headers=())
    leader = await server.send("/", {"User-Agent": "a", "X-Other": "a"})
    await eventually(lambda: tap.runs == 1)
    other = await server.send("/", {"User-Agent": "b", "X-Other": "b"})
    await server.waiting(1)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", leader, other)
    for name in ("User-Agent", "X-Other"):
        tap.let(lambda request, name=name: request.headers[name].encode())  # type: ignore[arg-type]
    tap.end()
    assert await received(leader) == b"one aa"
    assert await is_broken(other)
    assert server.figure("unshared") == {"header: user-agent": 1}
    await nothing_is_left(server)


async def test_nobody_joins_a_body_that_is_taken_for_something_else(serve: Start, quiet: list[Any]) -> None:
    tap = Tap()
    taken: list[bytes] = []
    takes: list[int] = []

    class Takes:
        async def write(self, chunk: bytes) -> None:
            taken.append(chunk)

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        response: Any = await handler(request)
        if not takes:
            takes.append(1)
            await response.body.write(Takes())
            return web.Response(body=b"".join(taken))
        return response  # type: ignore[no-any-return]

    server = await streams(serve, tap, handler=tap.one_shot, outer=[outer])
    first = await server.send("/")
    tap.send_head()
    tap.let(b"one ")
    await eventually(lambda: bool(taken))
    newcomer = await server.send("/")
    await arrived(b"one ", newcomer)
    assert tap.runs == 2
    tap.end()
    assert [await received(first), await received(newcomer)] == [b"one ", b"one "]
    await nothing_is_left(server)


async def test_what_the_handler_looked_at_counts_as_well_as_what_its_body_looks_at(serve: Start) -> None:
    tap = Tap()

    async def handler(request: web.Request) -> web.Response:
        tap.runs += 1
        await tap._head.wait()
        name = request.headers["User-Agent"]

        async def body() -> Any:
            async for piece in tap.pieces():
                yield f"{name} {request.headers['X-Other']};".encode() + piece

        return web.Response(body=body())

    server = await streams(serve, tap, handler=handler, headers=())
    first = await server.send("/", {"User-Agent": "a", "X-Other": "x"})
    await eventually(lambda: tap.runs == 1)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", first)
    other = await server.send("/", {"User-Agent": "b", "X-Other": "x"})
    await arrived(b"one ", other)
    tap.end()
    assert [await received(one) for one in (first, other)] == [b"a x;one ", b"b x;one "]
    assert tap.runs == 2
    await nothing_is_left(server)


async def test_what_a_handler_sends_as_it_is_cancelled_is_not_for_the_others(serve: Start, quiet: list[Any]) -> None:
    tap, scopes = Tap(), Scopes(answers=False)

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        run = tap.runs
        try:
            await tap._head.wait()
        except asyncio.CancelledError:
            pass
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"cancelled" if run == 1 else b"whole")
        return response

    server = await streams(serve, tap, handler=handler, outer=[scopes])
    everybody = await joined(server, 3, tap)
    await scopes.strike(0)
    await eventually(lambda: tap.runs == 2)
    tap.send_head()
    assert [await received(one) for one in everybody[1:]] == [b"whole"] * 2
    await nothing_is_left(server)


async def test_what_the_first_requesters_outer_middleware_looks_at_meanwhile_does_not_count(serve: Start) -> None:
    tap = Tap()
    looked, begun = asyncio.Event(), asyncio.Event()
    passed: list[int] = []

    @web.middleware
    async def outer(request: web.Request, handler: Any) -> web.StreamResponse:
        passed.append(1)
        is_first = len(passed) == 1
        response: web.StreamResponse = await handler(request)
        if is_first:
            await begun.wait()
            assert request.headers["User-Agent"] == "a"
            looked.set()
        return response

    server = await streams(serve, tap, handler=tap.one_shot, outer=[outer])
    first = await server.send("/", {"User-Agent": "a"})
    await eventually(lambda: tap.runs == 1)
    other = await server.send("/", {"User-Agent": "b"})
    await server.waiting(1)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", other)
    begun.set()
    await looked.wait()
    tap.let(b"two")
    tap.end()
    assert [await received(one) for one in (first, other)] == [b"one two"] * 2
    await nothing_is_left(server)
