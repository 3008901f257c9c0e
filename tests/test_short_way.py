"""The short way through the door: as the way in full, and only for requests about which nothing is odd."""

import asyncio
import gc
import random
import weakref
from typing import Any

import pytest
from aiohttp import web
from aiohttp.web_app import _cached_build_middleware

from aiohttp_reduce import reduce_middleware
from tests.virtual import Door, VirtualLoop, run_virtually

# (aiohttp 3.14 recommends keys that 3.12 does not have.)
TENANT: Any = getattr(web, "RequestKey", lambda name, _type: name)("tenant", str)
MINE: Any = getattr(web, "ResponseKey", lambda name, _type: name)("mine", str)


async def slow(request: web.Request) -> web.Response:
    await asyncio.sleep(1)
    return web.Response(text="slow")


@web.middleware
async def outer(request: web.Request, handler: Any) -> Any:
    return await handler(request)


def text_of(answer: Any) -> str:
    return str(answer.text)


async def learned(door: Door) -> None:
    """Let a first request show what is ordinary, and its last call end."""
    await door.get()
    await asyncio.sleep(1)
    assert takes_short_way(door)


def takes_short_way(door: Door) -> bool:
    return any(known.app_id for known in door.middleware._routes.values())


@pytest.mark.parametrize("name", ["host", "scheme"])
def test_what_a_clone_was_given_is_odd_even_if_as_much_was_looked_up_as_usual(name: str) -> None:
    async def says(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text=getattr(request, name))

    @web.middleware
    async def clones(request: web.Request, handler: Any) -> Any:
        options: Any = {name: request[TENANT]}
        twin = request.clone(**options)
        assert (twin.method, twin.rel_url, twin.match_info.http_exception) == ("GET", request.rel_url, None)
        return await handler(twin)

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, reduce_middleware(ignore_state=[TENANT]), says, outer=[clones])

        async def get(tenant: str) -> str:
            request = door.request()
            request[TENANT] = tenant
            return text_of(await door.app._handle(request))

        await get("first")
        await asyncio.sleep(1)
        assert takes_short_way(door)
        assert list(await asyncio.gather(get("one"), get("other"))) == ["one", "other"]

    run_virtually(main)


def test_a_clone_that_comes_to_the_first_door_again_is_not_taken_for_what_aiohttp_received() -> None:
    async def says(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text=request.host)

    middleware = reduce_middleware()

    @web.middleware
    async def again(request: web.Request, handler: Any) -> Any:
        twin = request.clone(host=request.query_string, rel_url="/")
        assert (twin.method, twin.rel_url.path, len(twin.headers)) == ("GET", "/", 1)
        return await middleware(twin, handler)

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, middleware, says, inner=[again])
        await door.get("/?first")
        await asyncio.sleep(1)
        answers = await asyncio.gather(door.get("/?one"), door.get("/?other"))
        assert [answer.text for answer in answers] == ["one", "other"]

    run_virtually(main)


@pytest.mark.parametrize("outers", [[], [outer]], ids=["first", "within"])
def test_who_has_waited_at_one_door_does_not_wait_at_a_second_one_of_the_same_object(outers: list[Any]) -> None:
    durations = [0, 100, 0]

    async def says(request: web.Request) -> web.Response:
        await asyncio.sleep(durations.pop(0))
        return web.Response()

    middleware = reduce_middleware(max_wait=1)

    @web.middleware
    async def again(request: web.Request, handler: Any) -> Any:
        twin = request.clone(rel_url="/within")
        assert (twin.method, twin.rel_url.path, len(twin.headers)) == ("GET", "/within", 1)
        assert twin.match_info.http_exception is None
        return await middleware(twin, handler)

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, middleware, says, outer=outers, inner=[again])
        await door.get()
        await asyncio.sleep(1)
        began = loop.time()
        stuck = loop.create_task(door.get())
        await asyncio.sleep(0)
        await door.get()
        assert loop.time() - began == pytest.approx(1)  # not once more for the one that is stuck
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)

    run_virtually(main)


@pytest.mark.parametrize("writes", ["item", "attribute"])
def test_what_a_resource_wrote_into_the_request_counts(writes: str) -> None:
    class Marks(web.PlainResource):
        """Matches nothing, and leaves a trace."""

        async def resolve(self, request: web.Request) -> Any:
            if request.protocol.peername == ("127.0.0.1", 2):
                if writes == "item":
                    request[TENANT] = "two"
                else:
                    request.tenant = "two"  # type: ignore[attr-defined]
            return None, set()

    async def says(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text=request.get(TENANT) or getattr(request, "tenant", "nobody"))

    async def main(loop: VirtualLoop) -> None:
        middleware = reduce_middleware()
        door = Door(loop, middleware, says)
        door.app = web.Application(middlewares=[middleware])
        door.app.router.register_resource(Marks("/"))
        door.app.router.add_get("/{tail:(?!_reduce/).*}", says)
        door.app._set_loop(loop)
        door.app.freeze()
        await learned(door)

        async def get(number: int) -> str:
            request = door.request()
            request.protocol.peername = ("127.0.0.1", number)
            return text_of(await door.app._handle(request))

        assert list(await asyncio.gather(get(1), get(2))) == ["nobody", "two"]

    run_virtually(main)


def test_a_route_forgets_an_application_that_is_gone() -> None:
    middleware = reduce_middleware()
    resource = web.PlainResource("/")
    resource.add_route("GET", slow)

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, middleware, slow)
        door.app = web.Application(middlewares=[middleware])
        door.app.router.register_resource(resource)
        door.app._set_loop(loop)
        door.app.freeze()
        await learned(door)

    run_virtually(main)
    _cached_build_middleware.cache_clear()  # where aiohttp keeps applications
    gc.collect()
    # Another one may have its identity, and this resource.
    assert [(known.app_id, known.table) for known in middleware._routes.values()] == [(0, None)]


@pytest.mark.parametrize("outers", [[], [outer]])
@pytest.mark.parametrize("is_ordinary", [True, False])
def test_a_cancelled_request_is_freed_at_once(outers: list[Any], is_ordinary: bool) -> None:
    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, reduce_middleware(), slow, outer=outers, is_ordinary=is_ordinary)
        await door.get()
        await asyncio.sleep(1)
        assert takes_short_way(door) is is_ordinary
        references = []

        async def visit() -> None:
            request = door.request()
            references.append(weakref.ref(request))
            await door.app._handle(request)

        gc.collect()
        gc.disable()
        try:
            task = loop.create_task(visit())
            await asyncio.sleep(0.5)
            task.cancel()
            await asyncio.wait([task])
            del task
            await asyncio.sleep(1)
            assert [reference() for reference in references] == [None]
        finally:
            gc.enable()

    run_virtually(main)


def test_the_short_way_comes_back_when_what_was_learned_has_expired() -> None:
    async def says(request: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response(text=request.headers["User-Agent"])

    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, reduce_middleware(), says)

        async def get(agent: str) -> str:
            return str((await door.get(headers={"User-Agent": agent})).text)

        for expected in (True, False):
            await get("a")
            await asyncio.sleep(1)
            assert takes_short_way(door) is expected
            assert list(await asyncio.gather(get("a"), get("b"))) == ["a", "b"]
            assert not takes_short_way(door)
        await asyncio.sleep(61)
        assert list(await asyncio.gather(get("a"), get("b"), get("a"))) == ["a", "b", "a"]

    run_virtually(main)


def test_answers_of_a_herd_do_not_show_what_was_done_to_one_of_them() -> None:
    async def main(loop: VirtualLoop) -> None:
        door = Door(loop, reduce_middleware(), slow)
        await learned(door)
        first, *others = await asyncio.gather(*[door.get() for _ in range(5)])
        assert door.middleware.stats["reduced"] == 4
        for number, answer in enumerate([*others, first]):
            assert "X-Mine" not in answer.headers
            assert MINE not in answer
            assert not answer.cookies
            answer.headers["X-Mine"] = answer[MINE] = str(number)
            answer.set_cookie("mine", str(number))
            answer.text = str(number)
        assert [answer.text for answer in [*others, first]] == ["0", "1", "2", "3", "4"]

    run_virtually(main)


def happens(seed: int, *, is_ordinary: bool) -> Any:
    """What comes of some requests, all choices drawn from the seed: answers, when they came, and the figures."""
    choose, fates = random.Random(seed), random.Random(seed + 1)
    random.seed(seed)  # who takes over
    has_key, has_outer, is_twice = choose.random() < 0.3, choose.random() < 0.5, choose.random() < 0.3

    async def handler(request: web.Request) -> web.Response:
        fate, look = fates.random(), fates.random()
        text = ""
        if look < 0.1:
            text = request.headers.get("User-Agent", "")
        elif look < 0.2:
            text = request.get(TENANT, "")
        elif look < 0.25:
            text = str(request.cookies)
        elif look < 0.3:
            text = str(request.remote)
        await asyncio.sleep(fates.choice([0, 0, 1, 2, 7]))
        if fate < 0.1:
            raise RuntimeError("broken")
        headers = {"Cache-Control": "no-store"} if fate < 0.2 else {"Vary": "User-Agent"} if fate < 0.25 else {}
        return web.Response(text=f"{fate} {text}", headers=headers)

    @web.middleware
    async def writes(request: web.Request, handler: Any) -> Any:
        if request.headers["X-Tenant"] != "-":
            request[TENANT] = request.headers["X-Tenant"]
        return await handler(request)

    async def main(loop: VirtualLoop) -> Any:
        key = (lambda request: request.query_string) if has_key else None
        middleware = reduce_middleware(key=key, max_age=choose.choice([0.5, 5]), max_wait=choose.choice([1, 5]))

        @web.middleware
        async def again(request: web.Request, handler: Any) -> Any:
            return await middleware(request, handler)

        inner = [again] if is_twice else []
        outers = [writes] if has_outer else []
        door = Door(loop, middleware, handler, outer=outers, inner=inner, is_ordinary=is_ordinary)
        came: list[Any] = []

        async def visit(number: int, comes: float, leaves: float | None, method: str, headers: dict[str, str]) -> None:
            await asyncio.sleep(comes)
            task = asyncio.ensure_future(door.app._handle(door.request("/", method, headers)))
            if leaves is not None:
                loop.call_later(leaves, task.cancel)
            await asyncio.wait([task])
            result = repr(task.exception()) if not task.cancelled() and task.exception() else ""
            if not result and not task.cancelled():
                result = f"{text_of(task.result())} {task.result().headers}"
            came.append((number, loop.time(), result))

        visits = [
            visit(
                number,
                choose.choice([0, 1, 1, 2, 2, 2, 3, 64, 64]),
                choose.choice([None, None, None, 0, 1, 2]),
                choose.choice(["GET"] * 12 + ["HEAD", "POST"]),
                {"User-Agent": choose.choice("aaab"), "X-Tenant": choose.choice("--xy")},
            )
            for number in range(choose.randint(4, 16))
        ]
        await asyncio.gather(*visits)
        await asyncio.sleep(1)
        assert door.nothing_is_left()
        stats = middleware.stats
        routes = list(stats.pop("routes").values())  # their names differ
        del stats["uptime"]
        return came, routes, stats

    return run_virtually(main)


def test_the_short_way_leads_where_the_way_in_full_leads() -> None:
    reduced = 0
    for seed in range(40):
        short, full = happens(seed, is_ordinary=True), happens(seed, is_ordinary=False)
        assert short == full, f"seed {seed}"
        reduced += short[2]["reduced"]
    assert reduced > 30
