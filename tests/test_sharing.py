"""Section 3, "Who may share", the plain rules: what an answer says, and how those who are turned away go on."""

from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.policy import cache_directives, judge, list_members, vary_names
from aiohttp_reduce.server import ReduceMiddleware
from aiohttp_reduce.stats import Unshared
from tests.harness import Gate, Server, Start, app_with, eventually


async def shared(
    serve: Start,
    headers: dict[str, str],
    requests: list[dict[str, str]],
    middleware: ReduceMiddleware | None = None,
    cookie: bool = False,
) -> tuple[int, Server]:
    """How many runs a herd costs whose answer has these headers."""
    gate = Gate()

    async def handler(request: web.Request) -> web.Response:
        await gate.wait()
        response = web.Response(text=request.headers.get("User-Agent", ""), headers=headers)
        if cookie:
            response.set_cookie("session", "1")
        return response

    middleware = middleware or reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    sent = []
    for number, request in enumerate(requests, 1):
        sent.append(await server.send("/", request))
        await eventually(lambda number=number: server.figure("waiting") + gate.runs == number)  # type: ignore[misc]
    assert gate.runs == 1, "they must wait together first"
    gate.open()
    for connection in sent:
        assert (await connection.receive()).status == 200
    await eventually(server.nothing_is_left)
    return gate.runs, server


ANYBODY: list[dict[str, str]] = [{}, {}, {}]
AUTHORIZED = [{"Authorization": "Basic abc"}] * 3
WITH_SESSION = [{"Cookie": "session=1"}] * 3
WITH_ANALYTICS = [{"Cookie": "_ga=1"}] * 3


@pytest.mark.parametrize(
    ("headers", "requests", "runs", "reason"),
    [
        ({"Set-Cookie": "a=1"}, ANYBODY, 3, "set-cookie"),
        ({"Cache-Control": "no-store"}, ANYBODY, 3, "no-store"),
        ({"Cache-Control": "max-age=0"}, ANYBODY, 1, None),
        ({"Cache-Control": "no-cache"}, ANYBODY, 3, "no-cache"),
        ({"Cache-Control": 'no-cache="Set-Cookie"'}, ANYBODY, 3, "no-cache"),
        ({"Cache-Control": "private"}, ANYBODY, 3, "private"),
        ({"Cache-Control": "private"}, AUTHORIZED, 1, None),
        ({"Cache-Control": "private"}, WITH_SESSION, 1, None),
        ({"Cache-Control": "private"}, WITH_ANALYTICS, 3, "private"),
        ({"Vary": "*"}, ANYBODY, 3, "vary"),
        ({"Vary": "Accept, *"}, ANYBODY, 3, "vary"),
        ({"Vary": "Accept, (bad)"}, ANYBODY, 3, "vary"),
        ({"Vary": "Accept-Encoding, Cookie"}, ANYBODY, 1, None),
        (
            {"Vary": "user-agent"},
            [{"User-Agent": "a"}, {"User-Agent": "b"}, {"User-Agent": "a"}],
            2,
            "vary: user-agent",
        ),
        ({"Vary": "user-agent"}, ANYBODY, 1, None),
    ],
)
async def test_what_the_answer_says(
    serve: Start, headers: dict[str, str], requests: list[dict[str, str]], runs: int, reason: str | None
) -> None:
    count, server = await shared(serve, headers, requests)
    assert count == runs
    assert server.figure("unshared") == ({} if reason is None else {reason: runs - 1})


async def test_a_cookie_of_the_response_object_is_not_shared(serve: Start) -> None:
    count, server = await shared(serve, {}, ANYBODY, cookie=True)
    assert count == 3
    assert server.figure("unshared") == {"set-cookie": 2}


async def test_private_is_shared_where_key_gave_a_value(serve: Start) -> None:
    private = {"Cache-Control": "private"}
    with_key = reduce_middleware(key=lambda request: "user 1")
    without = reduce_middleware(key=lambda request: None)
    assert (await shared(serve, private, ANYBODY, with_key))[0] == 1
    assert (await shared(serve, private, ANYBODY, without))[0] == 3


async def test_private_is_not_shared_where_credentials_are_not_selected(serve: Start) -> None:
    private = {"Cache-Control": "private"}
    assert (await shared(serve, private, AUTHORIZED, reduce_middleware(headers=("Accept",))))[0] == 3


async def test_the_unshared_run_all_at_once_and_say_so(serve: Start) -> None:
    gate = Gate()
    first = Gate()

    async def handler(request: web.Request) -> web.Response:
        await (first if first.runs == 0 else gate).wait()
        return web.Response(headers={"Cache-Control": "no-store"})

    middleware = reduce_middleware()
    server = await serve(app_with(handler, middleware), middleware=middleware)
    sent = [await server.send("/")]
    await first.entered()
    sent += [await server.send("/") for _ in range(10)]
    await server.waiting(10)
    first.open()
    await gate.entered(10)  # in parallel, none waits for another
    gate.open()
    assert [(await one.receive()).collapsed for one in sent] == [
        None,
        *["aiohttp-reduce; fwd=miss; collapsed=?0"] * 10,
    ]


@pytest.mark.parametrize(
    ("lines", "members"),
    [
        ([], []),
        (["a"], ["a"]),
        (["a, b", "c"], ["a", "b", "c"]),
        ([" ,a,, ,b ,"], ["a", "b"]),
        (['a="x, y", b'], ['a="x, y"', "b"]),
        (['a="x\\", y", b'], ['a="x\\", y"', "b"]),
        (['a="open, b'], ['a="open, b']),
        (['"', "a"], ['",a']),
    ],
)
def test_list_members_by_rfc_9110(lines: list[str], members: list[str]) -> None:
    assert list_members(lines) == members


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["no-store"], {"no-store"}),
        (["NO-STORE"], {"no-store"}),
        (["public", "No-Store"], {"public", "no-store"}),
        (['private="Set-Cookie, X", max-age=5'], {"private", "max-age"}),
        (['ext="no-store"'], {"ext"}),
        (["no-store=yes"], {"no-store"}),
        (['"no-store"'], {"no-store"}),
        (["no-store ; x"], {"no-store ; x"}),
    ],
)
def test_cache_directives_by_rfc_9111(lines: list[str], names: set[str]) -> None:
    assert cache_directives(lines) == names


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([""], ()),
        (["Accept, ACCEPT", "X-A"], ("accept", "x-a")),
        (["*"], None),
        (["A", "B, *"], None),
        (["A B"], None),
        (['"A"'], None),
    ],
)
def test_vary_names_by_rfc_9110(lines: list[str], names: tuple[str, ...] | None) -> None:
    assert vary_names(lines) == names


def test_the_first_restriction_decides() -> None:
    headers: CIMultiDict[str] = CIMultiDict({"Cache-Control": "private, no-store", "Vary": "*"})
    options: dict[str, Any] = {"has_credentials": True, "in_identity": lambda name: True}
    assert judge(headers, **options).reason is Unshared.NO_STORE
    headers["Set-Cookie"] = "a=1"
    assert judge(headers, **options).reason is Unshared.SET_COOKIE
