"""Streams behind two doors: who follows at the inner one and leads at the outer one has followers of its own there, and
what the handler looks at while its body is on the way counts for them as well."""

import asyncio
from typing import Any

import pytest
from aiohttp import payload, web

from aiohttp_reduce import reduce_middleware
from tests.harness import Server, Start, eventually
from tests.streaming import Tap, arrived, is_broken, nothing_is_left
from tests.test_streams_isolation import received


class Looks(Tap):
    """A tap whose pieces may be functions of the request; it compresses what it sends if `compresses`."""

    compresses = False

    def let(self, *pieces: Any) -> None:
        super().let(*pieces)

    async def pieces_for(self, request: web.Request) -> Any:
        async for piece in self.pieces():
            yield piece(request) if callable(piece) else piece

    async def handler(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.StreamResponse()
        if self.compresses:
            response.enable_compression()
        await response.prepare(request)
        async for piece in self.pieces_for(request):
            await response.write(piece)
            self.written += 1
        return response

    async def one_shot(self, request: web.Request) -> web.StreamResponse:
        self.runs += 1
        await self._head.wait()
        response = web.Response(body=self.pieces_for(request))
        if self.compresses:
            response.enable_compression()
        return response


A, B = {"User-Agent": "a"}, {"User-Agent": "b"}


def agent(request: web.Request) -> bytes:
    return b"[%s]" % request.headers["User-Agent"].encode()


async def behind_two_doors(serve: Start, handler: Any, outermost: Any = ()) -> Any:
    """A server with a door of an application, and one of its sub-application that takes all for one."""
    outer, inner = reduce_middleware(headers=("X-Who",)), reduce_middleware(headers=())
    sub = web.Application(middlewares=[inner])
    sub.router.add_get("/", handler)
    app = web.Application(middlewares=[*outermost, outer])
    app.add_subapp("/sub", sub)
    server = await serve(app, middleware=outer, shutdown_timeout=0.1)

    def waiting(number: int) -> Any:
        return eventually(lambda: inner.stats["waiting"] + server.figure("waiting") == number)

    return server, waiting


def held(opened: asyncio.Event) -> Any:
    """An outermost middleware that lets the answers to those of the second group through when that is set."""

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if request.headers["X-Who"] == "2":
            await opened.wait()
        return response

    return middleware


@pytest.mark.parametrize("one_shot", [False, True])
async def test_what_is_looked_at_meanwhile_counts_at_an_outer_door_where_a_follower_leads(
    serve: Start, one_shot: bool, quiet: list[Any]
) -> None:
    tap = Looks()
    server, waiting = await behind_two_doors(serve, tap.one_shot if one_shot else tap.handler)
    first = await server.send("/sub/", {**A, "X-Who": "1"})
    await eventually(lambda: tap.runs == 1)
    leads_outside = await server.send("/sub/", {**A, "X-Who": "2"})
    await waiting(1)
    other = await server.send("/sub/", {**B, "X-Who": "2"})
    await waiting(2)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", first, leads_outside, other)
    tap.let(agent)
    await arrived(b"[a]", first, leads_outside)
    tap.end()
    assert [await received(one) for one in (first, leads_outside)] == [b"one [a]"] * 2
    assert (await asyncio.wait_for(other.reader.read(), 2)).endswith(b"\r\none \r\n")
    await nothing_is_left(server)


@pytest.mark.parametrize("when", ["before it is sent outside", "meanwhile"])
async def test_what_a_body_looks_at_that_the_first_requester_reads_itself_counts_at_an_outer_door_too(
    serve: Start, when: str, quiet: list[Any]
) -> None:
    tap, opened = Looks(), asyncio.Event()
    server, _ = await behind_two_doors(serve, tap.one_shot, [held(opened)])
    first = await server.send("/sub/", {**A, "X-Who": "1"})
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", first)
    leads_outside = await server.send("/sub/", {**A, "X-Who": "2"})
    await eventually(lambda: server.figure("executed") == 2)
    other = await server.send("/sub/", {**B, "X-Who": "2"})
    await eventually(lambda: server.figure("reduced") == 1)
    if when == "meanwhile":
        opened.set()
        await arrived(b"one ", leads_outside, other)
    tap.let(agent)
    await arrived(b"[a]", first)
    opened.set()
    await arrived(b"[a]", leads_outside)
    tap.end()
    assert [await received(one) for one in (first, leads_outside)] == [b"one [a]"] * 2
    assert tap.runs == 1
    assert b"[a]" not in await asyncio.wait_for(other.reader.read(), 2)
    await nothing_is_left(server)


async def test_what_a_body_looked_at_that_was_read_for_all_counts_at_an_outer_door_that_has_not_begun(
    serve: Start, quiet: list[Any]
) -> None:
    tap, opened = Looks(), asyncio.Event()
    server, waiting = await behind_two_doors(serve, tap.one_shot, [held(opened)])
    first = await server.send("/sub/", {**A, "X-Who": "1"})
    await eventually(lambda: tap.runs == 1)
    leads_outside = await server.send("/sub/", {**A, "X-Who": "2"})
    await waiting(1)
    other = await server.send("/sub/", {**B, "X-Who": "2"})
    await waiting(2)
    tap.send_head()
    tap.let(b"one ", agent)
    await arrived(b"[a]", first)
    opened.set()
    tap.end()
    assert [await received(one) for one in (first, leads_outside)] == [b"one [a]"] * 2
    assert await is_broken(other)
    await nothing_is_left(server)


async def test_a_door_further_out_that_nobody_can_join_any_more_takes_nothing_from_those_further_in(
    serve: Start, quiet: list[Any]
) -> None:
    tap = Looks()
    server, waiting = await behind_two_doors(serve, tap.handler)
    first = await server.send("/sub/", {"X-Who": "1"})
    await eventually(lambda: tap.runs == 1)
    second = await server.send("/sub/", {"X-Who": "2"})
    await waiting(1)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", first, second)
    server.middleware.forget("/sub/")
    for piece in (b"two ", b"three "):
        tap.let(piece)
        await arrived(piece, first, second)
    tap.end()
    assert [await received(one) for one in (first, second)] == [b"one two three "] * 2
    assert tap.runs == 1
    assert (await first.request("/sub/", {"X-Who": "1"})).status == 200  # its connection goes on
    await nothing_is_left(server)


class Sized(payload.AsyncIterablePayload):
    """A body that is read once, and says how long it is."""

    size = 8


async def test_a_body_with_a_length_that_others_join_at_an_outer_door_comes_to_its_end(
    serve: Start, quiet: list[Any]
) -> None:
    tap = Looks()

    async def handler(request: web.Request) -> web.StreamResponse:
        tap.runs += 1
        await tap._head.wait()
        return web.Response(body=Sized(tap.pieces_for(request)))

    server, waiting = await behind_two_doors(serve, handler)
    first = await server.send("/sub/", {"X-Who": "1"})
    await eventually(lambda: tap.runs == 1)
    leads_outside = await server.send("/sub/", {"X-Who": "2"})
    await waiting(1)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", first, leads_outside)
    joins = await server.send("/sub/", {"X-Who": "2"})
    await arrived(b"one ", joins)
    tap.let(b"two.")
    tap.end()
    assert [await received(one) for one in (first, leads_outside, joins)] == [b"one two."] * 3
    assert tap.runs == 1
    await nothing_is_left(server)


async def test_a_body_goes_on_at_an_outer_door_when_its_first_requester_has_left(
    serve: Start, quiet: list[Any]
) -> None:
    tap = Looks()
    server, waiting = await behind_two_doors(serve, tap.one_shot)
    first = await server.send("/sub/", {"X-Who": "1"})
    await eventually(lambda: tap.runs == 1)
    follows_outside = await server.send("/sub/", {"X-Who": "1"})
    await waiting(1)
    leads_outside = await server.send("/sub/", {"X-Who": "2"})
    await waiting(2)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"one ", first, follows_outside, leads_outside)
    first.abort()
    for piece in (b"two ", b"three "):
        tap.let(piece)
        await arrived(piece, follows_outside, leads_outside)
    tap.end()
    assert [await received(one) for one in (follows_outside, leads_outside)] == [b"one two three "] * 2
    assert tap.runs == 1
    await nothing_is_left(server)


# -- whoever is broken off at the inner door breaks off for its own followers


def inner_stream(server: Server) -> Any:
    """The stream of the inner door."""
    [sub] = server.app._subapps
    [inner] = sub.middlewares
    [table] = inner._tables.values()  # type: ignore[attr-defined]
    [streams] = table.streams._by_path.values()
    [stream] = streams
    return stream


def cut(stream: Any, consumer: Any) -> None:
    """What becomes of a reader that has held up the others for too long."""
    stream.broadcast._cut(consumer)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("compresses", [False, True])
@pytest.mark.parametrize("one_shot", [False, True])
@pytest.mark.parametrize("way", ["looked at", "connection error", "http exception", "exception", "stalled"])
async def test_a_part_is_never_the_whole_for_those_who_follow_a_follower_that_was_broken_off(
    serve: Start, way: str, one_shot: bool, compresses: bool, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    tap = Looks()
    tap.compresses = compresses
    server, waiting = await behind_two_doors(serve, tap.one_shot if one_shot else tap.handler)
    coded = {"Accept-Encoding": "gzip"} if compresses else {}
    first = await server.send("/sub/", {**A, **coded, "X-Who": "1"}, version=version)
    await eventually(lambda: tap.runs == 1)
    leads_outside = await server.send("/sub/", {**B, **coded, "X-Who": "2"}, version=version)
    await waiting(1)
    follows = await server.send("/sub/", {**B, **coded, "X-Who": "2"}, version=version)
    await waiting(2)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"\r\n\r\n", first, leads_outside, follows)
    joins = await server.send("/sub/", {**B, **coded, "X-Who": "2"}, version=version)
    await arrived(b"\r\n\r\n", joins)
    if way == "looked at":
        tap.let(agent)
    elif way == "stalled":
        stream = inner_stream(server)
        for reader in list(stream.members):  # one, unless what is compressed further in is for one
            cut(stream, reader.consumer)
    else:
        errors = {"connection error": ConnectionResetError(), "http exception": web.HTTPGone()}
        tap.end(errors.get(way, OSError()))
    tap.end()
    assert [await is_broken(one) for one in (leads_outside, follows, joins)] == [True] * 3
    await nothing_is_left(server)


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("compresses", [False, True])
@pytest.mark.parametrize("one_shot", [False, True])
async def test_a_part_is_never_the_whole_for_those_who_follow_a_first_requester_that_was_cut_off(
    serve: Start, one_shot: bool, compresses: bool, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    tap = Looks()
    tap.compresses = compresses
    server, waiting = await behind_two_doors(serve, tap.one_shot if one_shot else tap.handler)
    coded = {"Accept-Encoding": "gzip"} if compresses else {}
    first = await server.send("/sub/", {**coded, "X-Who": "1"}, version=version)
    await eventually(lambda: tap.runs == 1)
    follows = await server.send("/sub/", {**coded, "X-Who": "1"}, version=version)
    await waiting(1)
    other = await server.send("/sub/", {**coded, "X-Who": "2"}, version=version)
    await waiting(2)
    tap.send_head()
    tap.let(b"one ")
    await arrived(b"\r\n\r\n", first, follows, other)
    stream = inner_stream(server)
    cut(stream, stream.broadcast._first)
    tap.let(b"two")
    tap.end()
    assert await is_broken(first)
    assert await is_broken(follows)
    assert not await is_broken(other)
    await nothing_is_left(server)
