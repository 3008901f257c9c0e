"""Section 3, "Who may share: what the answer says": each row of the table, and how those turned away go on."""

import logging
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from aiohttp_reduce import reduce_middleware
from aiohttp_reduce.policy import (
    SHARED,
    Verdict,
    is_for_others,
    is_fresh,
    judge,
    list_members,
    restrictions,
    vary_names,
)
from aiohttp_reduce.stats import Unshared
from tests.harness import Gate, Start, app_with, eventually
from tests.herds import herds

ANYBODY: list[Any] = [{}, {}, {}]
AUTHORIZED: list[Any] = [{"Authorization": "Basic abc"}] * 3
WITH_SESSION: list[Any] = [{"Cookie": "session=1"}] * 3
WITH_ANALYTICS: list[Any] = [{"Cookie": "_ga=1"}] * 3
LONG_AGO, LATER = "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"


async def verdict_on(
    serve: Start,
    answer_headers: dict[str, str] | CIMultiDict[str],
    requests: list[Any] = ANYBODY,
    *,
    status: int = 200,
    **options: Any,
) -> str | None:
    """Why an answer was not shared with a herd of three, or None where it was; all three get it in any case."""

    def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, headers=answer_headers)

    herd = await herds(serve, answer, **options)
    runs, replies = await herd.meet(requests)
    assert [reply.status for reply in replies] == [status] * len(requests)
    if herd.unshared:
        ((reason, count),) = herd.unshared.items()
        assert (runs, count) == (len(requests), len(requests) - 1)
        assert [reply.collapsed for reply in replies[1:]] == ["aiohttp-reduce; fwd=miss; collapsed=?0"] * count
        return reason
    assert runs == 1
    assert [reply.collapsed for reply in replies[1:]] == ["aiohttp-reduce; fwd=miss; collapsed"] * (len(requests) - 1)
    return None


# The rows of the table, in its order.


async def test_row_set_cookie_header(serve: Start) -> None:
    assert await verdict_on(serve, {"Set-Cookie": "a=1"}) == "set-cookie"


async def test_row_set_cookie_by_response_cookies(serve: Start) -> None:
    def answer(request: web.Request) -> web.Response:
        response = web.Response()
        response.set_cookie("session", "1")
        return response

    herd = await herds(serve, answer)
    assert (await herd.meet(ANYBODY))[0] == 3
    assert herd.unshared == {"set-cookie": 2}


@pytest.mark.parametrize("value", ["no-store", "NO-STORE", "max-age=5, no-store", '"no-store"'])
async def test_row_no_store(serve: Start, value: str) -> None:
    assert await verdict_on(serve, {"Cache-Control": value}) == "no-store"


@pytest.mark.parametrize("value", ["no-cache", 'no-cache="Set-Cookie"', "No-Cache , public"])
async def test_row_no_cache_qualified_or_not(serve: Start, value: str) -> None:
    assert await verdict_on(serve, {"Cache-Control": value}) == "no-cache"


async def test_row_max_age_0_is_not_that(serve: Start) -> None:
    assert await verdict_on(serve, {"Cache-Control": "max-age=0"}) is None


@pytest.mark.parametrize("value", ["private", 'private="X-User"', "max-age=60, Private"])
async def test_row_private_without_credentials(serve: Start, value: str) -> None:
    assert await verdict_on(serve, {"Cache-Control": value}) == "private"
    assert await verdict_on(serve, {"Cache-Control": value}, WITH_ANALYTICS) == "private"


async def test_row_private_with_credentials_in_the_identity(serve: Start) -> None:
    private = {"Cache-Control": "private"}
    assert await verdict_on(serve, private, AUTHORIZED) is None
    assert await verdict_on(serve, private, WITH_SESSION) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Cookie": ";"},
        {"Cookie": ","},
        {"Cookie": "_ga=1;;"},
        {"Cookie": "_ga=1; _gid=2; session="},
        {"Authorization": ""},
        [("Cookie", "_ga=1"), ("Cookie", "_ga=2")],
    ],
)
async def test_row_private_with_what_is_no_credential(serve: Start, headers: Any) -> None:
    assert await verdict_on(serve, {"Cache-Control": "private"}, [headers] * 3) == "private"


async def test_row_private_with_credentials_that_are_not_selected(serve: Start) -> None:
    private = {"Cache-Control": "private, must-revalidate"}
    assert await verdict_on(serve, private, AUTHORIZED, headers=("Accept",)) == "private"
    assert await verdict_on(serve, private, WITH_SESSION, headers=("Accept",)) == "private"
    assert await verdict_on(serve, private, AUTHORIZED, headers=("Authorization",)) is None
    assert await verdict_on(serve, private, WITH_SESSION, headers=("Cookie",)) is None


async def test_row_private_where_key_gave_a_value(serve: Start) -> None:
    private = {"Cache-Control": "private"}
    assert await verdict_on(serve, private, key=lambda request: "user 1") is None
    assert await verdict_on(serve, private, key=lambda request: None) == "private"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "authorization"),
        ("max-age=60", "authorization"),
        ("public", None),
        ("s-maxage=0", None),
        ("MUST-REVALIDATE", None),
        ("must-revalidate=yes", "authorization"),
        ('"public"', "authorization"),
        ("public=yes", "authorization"),
        ("s-maxage", "authorization"),
        ('s-maxage="60"', "authorization"),
        ("s-maxage=-1", "authorization"),
        ('x="public, must-revalidate"', "authorization"),
        ("public; must-revalidate", "authorization"),
    ],
)
async def test_row_authorization_that_is_not_selected(serve: Start, value: str, reason: str | None) -> None:
    headers = {"Cache-Control": value} if value else {}
    assert await verdict_on(serve, headers, AUTHORIZED, headers=("Accept",)) == reason
    assert await verdict_on(serve, headers, AUTHORIZED, ignore_headers=("Authorization",)) == reason
    assert await verdict_on(serve, headers, AUTHORIZED) is None


async def test_row_authorization_of_the_leader_alone(serve: Start) -> None:
    herd = await herds(serve, lambda request: "anything", headers=("Accept",))
    assert (await herd.meet([{"Authorization": "Basic abc"}, {}]))[0] == 2
    assert herd.unshared == {"authorization": 1}


async def test_row_authorization_of_a_follower_alone(serve: Start) -> None:
    requests = [{}, {"Authorization": "Basic abc"}, {}]
    herd = await herds(serve, lambda request: "anything", headers=("Accept",))
    assert (await herd.meet(requests))[0] == 2
    assert herd.unshared == {"authorization": 1}


@pytest.mark.parametrize("value", ["*", "Accept, *", "*, Accept", "Accept, (bad)", "Accept;q=1", '"Accept"'])
async def test_row_vary_star_or_malformed(serve: Start, value: str) -> None:
    assert await verdict_on(serve, {"Vary": value}) == "vary"


async def test_row_vary_star_on_a_line_of_its_own(serve: Start) -> None:
    lines: CIMultiDict[str] = CIMultiDict([("Vary", "Accept"), ("Vary", "*")])
    assert await verdict_on(serve, lines) == "vary"


async def test_row_vary_on_what_is_in_the_identity(serve: Start) -> None:
    assert await verdict_on(serve, {"Vary": "Accept-Encoding, Cookie, Host,,"}) is None


async def test_row_vary_on_what_is_not(serve: Start) -> None:
    requests = [{"User-Agent": "a"}, {"User-Agent": "b"}, {"User-Agent": "a"}, {}]
    herd = await herds(serve, lambda request: web.Response(headers={"Vary": "user-agent"}))
    assert (await herd.meet(requests))[0] == 3
    assert herd.unshared == {"vary: user-agent": 2}
    # What an answer says that it varies by, the route's later requests are told apart by.
    runs, replies = await herd.meet(requests[:3])
    assert runs == 2
    assert [reply.collapsed for reply in replies] == [None, None, "aiohttp-reduce; fwd=miss; collapsed"]


@pytest.mark.parametrize("status", [401, 403, 407, 421, 425, 429, 431, 511])
async def test_row_statuses_that_judge_the_one_who_asked(serve: Start, status: int) -> None:
    public = {"Cache-Control": "public, max-age=60"}
    assert await verdict_on(serve, public, status=status) == f"status: {status}"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("WWW-Authenticate", "Digest nonce=1", "authentication: www-authenticate"),
        ("Proxy-Authenticate", "Basic", "authentication: proxy-authenticate"),
        ("Authentication-Info", "nextnonce=1", "authentication: authentication-info"),
        ("Proxy-Authentication-Info", "nextnonce=1", "authentication: proxy-authentication-info"),
        ("Clear-Site-Data", '"cookies"', "clear-site-data"),
        ("Content-Security-Policy", "script-src 'nonce-abc'", "csp-nonce"),
        ("Content-Security-Policy", "default-src 'self'; script-src 'NONCE-abc'", "csp-nonce"),
        ("Content-Security-Policy-Report-Only", "script-src 'nonce-abc'", "csp-nonce"),
        ("Content-Security-Policy", "script-src 'self' https://nonce-.example", None),
    ],
)
async def test_row_headers_that_mark_the_one_who_asked(serve: Start, name: str, value: str, reason: str | None) -> None:
    assert await verdict_on(serve, {name: value}) == reason


@pytest.mark.parametrize("status", [201, 202, 302, 303, 307])
async def test_row_statuses_that_may_be_for_one_without_freshness(serve: Start, status: int) -> None:
    reason = f"no-freshness: {status}"
    assert await verdict_on(serve, {"Location": "/one-time"}, status=status) == reason
    assert await verdict_on(serve, {"Cache-Control": "max-age=0"}, status=status) == reason
    assert await verdict_on(serve, {"Cache-Control": "max-age=60"}, status=status) is None
    assert await verdict_on(serve, {"Expires": "Mon, 01 Jan 2001 00:00:00 GMT"}, status=status) == reason
    assert await verdict_on(serve, {"Expires": LATER}, status=status) is None


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream ; x", "text/event-stream", "Text/Event-Stream; x=1", "multipart/x-mixed-replace"],
)
async def test_row_streams_of_events(serve: Start, content_type: str) -> None:
    assert await verdict_on(serve, {"Content-Type": content_type}) == "stream"


async def test_row_a_websocket(serve: Start) -> None:
    socket: Any = web.WebSocketResponse()
    herd = await herds(serve, lambda request: socket)
    sent = [await herd.server.send("/") for _ in range(2)]
    await eventually(lambda: herd.server.figure("waiting") == 1)
    herd.gate.open()
    await eventually(lambda: herd.unshared == {"stream": 1})
    for one in sent:
        one.abort()


@pytest.mark.parametrize("status", [200, 203, 206, 204, 300, 301, 304, 308, 400, 404, 405, 410, 418, 500, 502, 503])
async def test_row_anything_else_is_shared(serve: Start, status: int) -> None:
    assert await verdict_on(serve, {}, status=status) is None


async def test_an_exception_is_judged_as_an_answer(serve: Start) -> None:
    herd = await herds(serve, lambda request: web.HTTPUnauthorized(headers={"WWW-Authenticate": "Digest nonce=1"}))
    assert (await herd.meet(ANYBODY))[0] == 3
    herd = await herds(serve, lambda request: web.HTTPFound("/one-time"))
    assert (await herd.meet(ANYBODY))[0] == 3
    herd = await herds(serve, lambda request: web.HTTPNotFound())
    assert (await herd.meet(ANYBODY))[0] == 1


# `share=`


async def test_share_true_overrides_what_the_answer_says(serve: Start) -> None:
    def answer(request: web.Request) -> web.Response:
        response = web.Response(status=429, headers={"Cache-Control": "no-store", "Vary": "*", "Set-Cookie": "a=1"})
        response.set_cookie("b", "2", path="/x")
        return response

    asked: list[Any] = []

    def share(request: web.Request, response: web.StreamResponse) -> bool:
        asked.append((request.path, response.status))
        return True

    herd = await herds(serve, answer, share=share)
    runs, replies = await herd.meet(ANYBODY)
    assert runs == 1
    assert asked == [("/", 429)]
    assert [reply.headers.getall("Set-Cookie") for reply in replies] == [["a=1", "b=2; Path=/x"]] * 3


async def test_a_shared_cookie_jar_is_as_it_was_when_the_handler_returned(serve: Start) -> None:
    def answer(request: web.Request) -> web.Response:
        response = web.Response()
        response.set_cookie("shared", "1")
        return response

    @web.middleware
    async def adds_its_own(request: web.Request, handler: Any) -> web.StreamResponse:
        response: web.StreamResponse = await handler(request)
        if request.headers["X-Request-ID"] in {"0", "1"}:  # the leader, and one who follows
            response.set_cookie("own", request.headers["X-Request-ID"])
            response.cookies["shared"]["path"] = f"/{request.headers['X-Request-ID']}"
        return response

    herd = await herds(serve, answer, share=lambda request, response: True, outer=[adds_its_own])
    runs, replies = await herd.meet([{"X-Request-ID": str(number)} for number in range(3)])
    assert runs == 1
    assert [sorted(reply.headers.getall("Set-Cookie")) for reply in replies] == [
        ["own=0; Path=/", "shared=1; Path=/0"],
        ["own=1; Path=/", "shared=1; Path=/1"],
        ["shared=1; Path=/"],
    ]


async def test_share_false_turns_away_whatever_the_answer_says(serve: Start) -> None:
    public = {"Cache-Control": "public, max-age=60"}
    assert await verdict_on(serve, public, share=lambda request, response: False) == "share"


async def test_share_is_not_asked_of_what_cannot_be_sent_twice(serve: Start) -> None:
    asked: list[Any] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        response = web.FileResponse(__file__)
        await response.prepare(request)
        return response

    gate = Gate()
    middleware = reduce_middleware(share=lambda request, response: asked.append(response) or True)
    server = await serve(app_with(handler, middleware), middleware=middleware)
    sent = [await server.send("/") for _ in range(2)]
    await server.waiting(1)
    gate.open()
    for one in sent:
        await one.receive()
    assert (asked, server.figure("unshared")) == ([], {"stream": 1})


async def test_share_none_leaves_it_to_the_answer(serve: Start) -> None:
    assert await verdict_on(serve, {}, share=lambda request, response: None) is None
    assert await verdict_on(serve, {"Vary": "*"}, share=lambda request, response: None) == "vary"


@pytest.mark.parametrize("said", [1, "yes", ValueError("broken")])
async def test_share_that_goes_wrong_is_logged_and_turns_away(
    serve: Start, said: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def share(request: web.Request, response: web.StreamResponse) -> Any:
        if isinstance(said, Exception):
            raise said
        return said

    assert await verdict_on(serve, {}, share=share) == "share-error"
    assert (
        len([record for record in caplog.records if "share failed" in record.message]) == 3
    )  # and for each of those who ran by themselves


async def test_share_does_not_override_what_the_handler_looked_at(serve: Start) -> None:
    herd = await herds(serve, lambda request: request.headers["User-Agent"], share=lambda request, response: True)
    runs, replies = await herd.meet([{"User-Agent": "a"}, {"User-Agent": "b"}])
    assert (runs, [reply.text for reply in replies]) == (2, ["a", "b"])


# How those who are turned away go on.


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
    (table,) = middleware._tables.values()
    assert not any(flight.under_way for flight in table.flights.values())  # and they make no flights
    gate.open()
    assert [(await one.receive()).collapsed for one in sent] == [
        None,
        *["aiohttp-reduce; fwd=miss; collapsed=?0"] * 10,
    ]


async def test_what_split_a_herd_is_told_once_in_the_log(serve: Start, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aiohttp_reduce")
    herd = await herds(serve, lambda request: request.headers.get("User-Agent"))
    await herd.meet([{"User-Agent": "a"}, {"User-Agent": "b"}, {"User-Agent": "b"}])
    assert herd.unshared == {"header: user-agent": 2}
    told = [record.getMessage() for record in caplog.records if record.name == "aiohttp_reduce"]
    assert told == ["GET /: not shared (header: user-agent)"]


# The grammar: RFC 9110, 5.6 and 12.5.5; RFC 9111, 5.2.


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
    ("lines", "restricts"),
    [
        (["no-store"], True),
        (["NO-STORE"], True),
        (["public", "No-Store"], True),
        (["public,,  ,no-store,"], True),
        (['no-store="x"'], True),
        (["no-store=yes"], True),
        (['"no-store"'], True),
        (["no-store ; x"], True),
        (["max-age=5 no-store"], True),
        (["max-age=5; no-store"], True),
        (['ext="a no-store'], True),
        (['ext="a" no-store'], True),
        (["MAX-AGE=5 NO-STORE"], True),
        (["x_no-store"], False),
        (["ext=no-store"], False),
        (["=no-store"], True),
        (["'no-store'"], True),
        (["no-store\t"], True),
        (["max-age = no-store"], True),
        (['x="a', 'no-store"'], True),
        (['x="a, no-store', 'b"'], True),
        (['ext="no-store"'], False),
        (['ext="a\\", no-store, \\""'], False),
        (["x-no-store"], False),
        (["no-stores"], False),
        (["max-age=5, public"], False),
        ([""], False),
    ],
)
def test_restrictive_directives_are_recognised_liberally(lines: list[str], *, restricts: bool) -> None:
    assert ("no-store" in restrictions(lines)) is restricts


@pytest.mark.parametrize(
    ("lines", "fresh"),
    [
        (["max-age=60"], True),
        (["Max-Age=1"], True),
        (["max-age=0"], False),
        (['max-age="60"'], False),
        (["max-age=60s"], False),
        (["max-age"], False),
        (["max-age=-1"], False),
        (["max-age=1.5"], False),
        (["max-age=60, max-age=0"], False),
        (["max-age=0", "max-age=60"], False),
        (["max-age = 60"], False),
        (["max-age=99999999999999999999"], False),
        (["s-maxage=60"], True),
        (["s-maxage=0, max-age=60"], False),
        (["s-maxage=60, max-age=0"], True),
        (["s-maxage=x, max-age=60"], False),
        (['s-maxage="0", max-age=60'], False),
        (['x="max-age=60"'], False),
        (["public"], False),
        ([], False),
    ],
)
def test_freshness_is_believed_only_where_it_is_well_formed(lines: list[str], *, fresh: bool) -> None:
    headers: CIMultiDict[str] = CIMultiDict([("Cache-Control", line) for line in lines])
    assert is_fresh(headers, now=0) is fresh


@pytest.mark.parametrize(
    ("lines", "fresh"),
    [
        ([LATER], True),
        ([LONG_AGO], False),
        (["0"], False),
        (["tomorrow"], False),
        ([LATER, LATER], False),
        (["Fri, 01 Jan 2100 00:00:00 +0000"], False),
        (["Fri, 99 Xyz 2100 00:00:00 GMT"], False),
        ([LATER + ", x"], False),
        (["Fri, 01 Jan \u0662\u0661\u0660\u0660 00:00:00 GMT"], False),
        (["Thu, 01 Jan 1970 00:00:01 GMT"], False),  # that is now
        (["Sat, 01 Jan 0050 00:00:00 GMT"], False),
        (["Mon, 01 Jan 0001 00:00:00 GMT"], False),
        (["Fry, 01 Jan 2100 00:00:00 GMT"], False),
        (["Fri, 01 Foo 2100 00:00:00 GMT"], False),
        (["fri, 01 Jan 2100 00:00:00 GMT"], False),
        (["Fri, 31 Feb 2100 00:00:00 GMT"], False),
        (["Fri, 01 Jan 2100 25:00:00 GMT"], False),
        (["Friday, 01-Jan-10 00:00:00 GMT"], False),  # the obsolete forms are not believed
        (["Fri Jan  1 00:00:00 2100"], False),
        ([""], False),
    ],
)
def test_expires_by_rfc_9110(lines: list[str], *, fresh: bool) -> None:
    headers: CIMultiDict[str] = CIMultiDict([("Expires", line) for line in lines])
    assert is_fresh(headers, now=1) is fresh
    headers["Cache-Control"] = "max-age=0"  # goes before it (RFC 9111, 5.3)
    assert not is_fresh(headers, now=1)


HOUR = {0: "Thu, 01 Jan 2026 00:00:00 GMT", 1: "Thu, 01 Jan 2026 01:00:00 GMT", 2: "Thu, 01 Jan 2026 02:00:00 GMT"}


@pytest.mark.parametrize(
    ("headers", "fresh"),
    [
        # At one o'clock. An answer that was made earlier, as a gateway passes it on, may be too old.
        ([("Cache-Control", "max-age=60"), ("Date", HOUR[1])], True),
        ([("Cache-Control", "max-age=60"), ("Date", HOUR[0])], False),
        ([("Cache-Control", "max-age=3600"), ("Date", HOUR[0])], False),
        ([("Cache-Control", "max-age=3601"), ("Date", HOUR[0])], True),
        ([("Cache-Control", "s-maxage=60, max-age=7200"), ("Date", HOUR[0])], False),
        ([("Cache-Control", "max-age=60"), ("Age", "59")], True),
        ([("Cache-Control", "max-age=60"), ("Age", "60")], False),
        ([("Cache-Control", "max-age=60"), ("Age", "0")], True),
        ([("Cache-Control", "max-age=60"), ("Age", "-1")], False),
        ([("Cache-Control", "max-age=60"), ("Age", "x")], False),
        ([("Cache-Control", "max-age=60"), ("Age", "")], False),
        ([("Cache-Control", "max-age=60"), ("Age", "1"), ("Age", "1")], False),
        ([("Cache-Control", "max-age=60"), ("Age", "99999999999")], False),
        # A clock that is ahead makes nothing older (RFC 9111, 4.2.3).
        ([("Cache-Control", "max-age=60"), ("Date", HOUR[2])], True),
        ([("Cache-Control", "max-age=60"), ("Date", "yesterday")], False),
        ([("Cache-Control", "max-age=60"), ("Date", HOUR[1]), ("Date", HOUR[1])], False),
        # Expires is as long after now as it is after Date (RFC 9111, 4.2.1).
        ([("Expires", HOUR[2])], True),
        ([("Expires", HOUR[1])], False),
        ([("Expires", HOUR[2]), ("Date", HOUR[1])], True),
        ([("Expires", HOUR[2]), ("Date", HOUR[0])], True),
        ([("Expires", HOUR[2]), ("Date", HOUR[2])], False),
        ([("Expires", HOUR[1]), ("Date", HOUR[2])], False),
        ([("Expires", HOUR[1]), ("Date", HOUR[0])], False),
        ([("Expires", HOUR[2]), ("Age", "3600")], False),
        ([("Expires", HOUR[2]), ("Age", "3599")], True),
        ([("Date", HOUR[1]), ("Age", "0")], False),
    ],
)
def test_what_is_old_already_is_not_fresh(headers: list[tuple[str, str]], *, fresh: bool) -> None:
    assert is_fresh(CIMultiDict(headers), now=1_767_229_200.0) is fresh


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([], ()),
        ([""], ()),
        ([" , ,"], ()),
        (["Accept, ACCEPT", "X-A"], ("accept", "x-a")),
        ([",Accept,,X-A,"], ("accept", "x-a")),
        (["A,\tB"], ("a", "b")),
        (["*"], None),
        (["A", "B, *"], None),
        (["*, A"], None),
        (["A B"], None),
        (["A: B"], None),
        (['"A"'], None),
        (['A, "'], None),
        (["A;B"], None),
        (["Ä"], None),
        (["Coo\u212aie"], None),  # the Kelvin sign: in small letters it is a "k"
    ],
)
def test_vary_names_by_rfc_9110(lines: list[str], names: tuple[str, ...] | None) -> None:
    assert vary_names(lines) == names


def test_a_long_header_takes_linear_time() -> None:
    for text in ['"' * 60_000, ",".join(['a="'] * 20_000), "\\" * 60_000, '"\\' * 30_000, "a=" * 30_000]:
        headers: CIMultiDict[str] = CIMultiDict({"Cache-Control": text, "Vary": text, "Expires": text})
        assert not is_for_others(headers)
        assert not is_fresh(headers, now=0)
        assert vary_names([text]) is None
        assert "no-store" not in restrictions([text])


OPTIONS: dict[str, Any] = {"authorized": False, "has_credentials": True, "in_identity": lambda name: True, "now": 0.0}


def test_the_first_restriction_decides() -> None:
    headers: CIMultiDict[str] = CIMultiDict({"Cache-Control": "private, no-store", "Vary": "*"})
    assert judge(200, headers, **OPTIONS).reason is Unshared.NO_STORE
    headers["Set-Cookie"] = "a=1"
    assert judge(200, headers, **OPTIONS).reason is Unshared.SET_COOKIE


def test_all_lines_of_a_header_count() -> None:
    lines: list[tuple[str, str, Unshared]] = [
        ("Cache-Control", "no-store", Unshared.NO_STORE),
        ("Vary", "*", Unshared.VARY),
        ("Content-Security-Policy", "script-src 'nonce-1'", Unshared.CSP_NONCE),
    ]
    for name, value, reason in lines:
        headers: CIMultiDict[str] = CIMultiDict([(name, "x"), (name, value)])
        assert judge(200, headers, **OPTIONS).reason is reason


def test_vary_on_what_is_in_the_identity_is_not_compared() -> None:
    options = {**OPTIONS, "in_identity": lambda name: name != "dnt"}
    assert judge(200, CIMultiDict({"Vary": "Cookie, DNT"}), **options).vary == ("dnt",)


def test_an_answer_that_says_nothing_is_shared() -> None:
    assert judge(200, CIMultiDict(), **OPTIONS) == SHARED
    assert judge(101, CIMultiDict(), **OPTIONS) == Verdict(Unshared.STREAM)
