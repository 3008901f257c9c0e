"""Random handlers, selections and requests in virtual time: nobody is handed what was meant for someone else.

Each handler is a pure function of its request, so that everybody's right answer is known without coalescing.
`python -m tests.test_foreign_fuzz 0 20000` runs as many seeds as you like.
"""

import asyncio
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from aiohttp_reduce import reduce_middleware
from tests.virtual import Door, VirtualLoop, run_virtually

VALUES: dict[str, tuple[str, ...]] = {
    "User-Agent": ("a", "b"),
    "X-Real-IP": ("1", "2"),
    "Accept": ("x", "y"),
    "Cookie": ("s=1", "s=2"),
    "Authorization": ("Basic 1", "Basic 2"),
    "X-Api-Key": ("1", "2"),
    "Range": ("bytes=0-1", "bytes=0-2"),
    "If-None-Match": ('"1"', '"2"'),
    "Forwarded": ("for=1;host=a", "for=2;host=a", "for=1;host=b"),
    "Connection": ("close", "keep-alive"),
    "Content-Type": ("text/a", "text/b"),
}

LOOKS: list[Callable[[web.Request], Any]] = [
    *[lambda request, name=name: request.headers.get(name) for name in VALUES],
    *[lambda request, name=name: name.lower() in request.headers for name in VALUES],
    lambda request: request.remote,
    lambda request: dict(request.cookies),
    lambda request: request.http_range,
    lambda request: request.if_none_match,
    lambda request: [dict(element) for element in request.forwarded],
    lambda request: request.keep_alive,
    lambda request: request.content_type,
    lambda request: sorted(request.headers.items()),
    lambda request: sorted(CIMultiDict(request.headers)),
    lambda request: sorted(request.raw_headers),
    lambda request: request.clone().headers.get("User-Agent"),
    lambda request: request.get("item"),
    lambda request: request.get("other"),
    lambda request: "item" in request,
    lambda request: sorted(map(str, request.items())),
    lambda request: request.query_string,
    lambda request: request.host,
]

ITEMS: list[Callable[[web.Request], Any]] = [
    lambda request: request.headers.get("User-Agent"),
    lambda request: {"ip": [request.headers.get("X-Real-IP")]},
    lambda request: request.headers.get("X-Api-Key") == "1" or 1,
    lambda request: (request.headers.get("Cookie"), request.headers.get("Accept")),
]


@web.middleware
async def gives_items(request: web.Request, handler: Any) -> Any:
    make = request.app["item"]
    if make is not None:
        request["item"] = make(request)
    if request.headers.get("X-Api-Key") == "2":
        request["other"] = "2"
    return await handler(request)


@web.middleware
async def clones(request: web.Request, handler: Any) -> Any:
    if request.app["clones"]:
        request = request.clone(remote=request.headers.get("X-Real-IP", "none"))
    return await handler(request)


@web.middleware
async def looks_first(request: web.Request, handler: Any) -> Any:
    for look in request.app["looks first"]:
        look(request)
    response = await handler(request)
    for look in request.app["looks first"]:
        look(request)
    return response


def program(choose: random.Random) -> list[Any]:
    """What a handler looks at: each entry is a look, and what to look at next if that gave something."""
    return [(choose.choice(LOOKS), choose.choice([None, choose.choice(LOOKS)])) for _ in range(choose.randint(1, 3))]


async def seen_by(request: web.Request, looks: list[Any], pause: Callable[[], Any]) -> str:
    seen = []
    for look, then in looks:
        value = look(request)
        await pause()
        seen.append((value, then(request) if then is not None and value else None))
    return repr(seen)


def herds_of(seed: int) -> int:
    """Some herds on one route, all choices drawn from the seed; how many were reduced. Raises AssertionError."""
    choose = random.Random(seed)
    looks, inner_looks = program(choose), program(choose) if choose.random() < 0.3 else []
    longest = choose.choice([0, 0, 1, 3])
    extra = choose.choice([{}, {}, {"Vary": "User-Agent"}, {"Cache-Control": "public"}, {"Cache-Control": "no-store"}])
    selected: Any = choose.choice([None, None, (), ("Accept",), ("Accept", "User-Agent", "Authorization")])
    item, cloning, first = (
        choose.choice([None, *ITEMS]),
        choose.random() < 0.3,
        choose.sample(LOOKS, choose.choice([0, 3])),
    )
    names = choose.sample(sorted(VALUES), 2)
    options = {"max_age": choose.choice([1, 5]), "max_wait": choose.choice([0.5, 1, 30])}

    async def at_once() -> None:
        pass

    async def a_moment() -> None:
        await asyncio.sleep(choose.choice([0, 0, longest]))

    def handler_with(pause: Callable[[], Any]) -> Any:
        async def handler(request: web.Request) -> web.Response:
            return web.Response(text=await seen_by(request, looks, pause), headers=extra)

        return handler

    @web.middleware
    async def inside(request: web.Request, handler: Any) -> Any:
        seen = await seen_by(request, inner_looks, at_once)
        response = await handler(request)
        if isinstance(response, web.Response) and not response.prepared and inner_looks:
            response = web.Response(text=f"{seen} {response.text}", headers=extra)
        return response

    async def main(loop: VirtualLoop) -> int:
        outer = choose.choice([[gives_items, clones, looks_first], [looks_first], []])
        inner: list[Any] = [inside]
        if choose.random() < 0.3:
            inner.insert(choose.choice([0, 1]), reduce_middleware(headers=choose.choice([None, ()]), **options))
            inner_door: Any = next(one for one in inner if one is not inside)
            inner_door._clock = inner_door._settings.clock = loop.time
        door = Door(
            loop,
            reduce_middleware(headers=selected, **options),
            handler_with(a_moment),
            outer=outer,
            inner=inner,
            is_ordinary=choose.random() < 0.7,
        )
        plain = Door(
            loop, reduce_middleware(when=lambda request: False), handler_with(at_once), outer=outer, inner=[inside]
        )
        for one in (door, plain):
            for key, value in (("item", item), ("clones", cloning), ("looks first", first)):
                one.app._state[key] = value

        async def visit(comes: float) -> None:
            await asyncio.sleep(comes)
            headers = {name: choose.choice(VALUES[name]) for name in names if choose.random() < 0.5}
            target = choose.choice(["/", "/", "/?q"])
            expected = (await plain.get(target, headers=headers)).text
            task = asyncio.ensure_future(door.app._handle(door.request(target, headers=headers)))
            if choose.random() < 0.1:
                loop.call_later(choose.choice([0, 0.5, 1]), task.cancel)
            try:
                response = await task
            except asyncio.CancelledError:
                return
            assert response.text == expected, f"{headers} got {response.text}, not {expected}"

        for _ in range(3):
            await asyncio.gather(*[visit(choose.choice([0, 0, 0, 0.2, 1])) for _ in range(choose.randint(3, 12))])
            await asyncio.sleep(choose.choice([0.01, 5]))
        assert door.nothing_is_left()
        reduced: int = door.middleware.stats["reduced"]
        return reduced

    return run_virtually(main)


@pytest.mark.filterwarnings("ignore:It is recommended to use web:Warning")
@pytest.mark.parametrize("block", range(4))
def test_nobody_is_handed_a_foreign_answer(block: int) -> None:
    reduced = 0
    for seed in range(block * 40, block * 40 + 40):
        try:
            reduced += herds_of(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}: tests.test_foreign_fuzz.herds_of({seed})")
            raise
    assert reduced > 100, "or this shows nothing"


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            herds_of(number)
        except AssertionError as failure:
            sys.stderr.write(f"seed {number}: {failure}\n")
