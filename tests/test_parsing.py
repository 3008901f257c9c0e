"""Sections 3 and 6, the fields of HTTP: any text is parsed without an exception, odd cases as their RFCs have them, and
what is not understood is not shared.

`python -m tests.test_parsing 100000` tries as many examples of each property as you like.
"""

import re
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from aiohttp_reduce import arguments
from aiohttp_reduce.policy import (
    SHARED,
    Verdict,
    is_for_others,
    is_fresh,
    judge,
    judge_fetched,
    list_members,
    permissions,
    restrictions,
    vary_names,
)
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from aiohttp_reduce.server.access import local_only
from aiohttp_reduce.server.identity import Selection, forwarded_host_and_proto
from aiohttp_reduce.stats import Unshared

EXAMPLES = int(sys.argv[1]) if __name__ == "__main__" else 80
tried = settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")


def text_of(data: bytes) -> str:
    """As aiohttp hands over the bytes of a header."""
    return data.decode("utf-8", "surrogateescape")


def of_pieces(*pieces: str) -> st.SearchStrategy[str]:
    """What is made of such pieces, or of any bytes."""
    words = st.one_of(st.sampled_from(pieces), st.binary(max_size=3).map(text_of))
    return st.one_of(st.lists(words, max_size=12).map("".join), st.binary(max_size=40).map(text_of))


LIST = ('"', "\\", ",", ", ", " ", "\t", "=", ";", "*", "'", "\xa0", "é", "\u212a")
CACHE_CONTROL = (
    *LIST, "no-store", "NO-CACHE", "private", "public", "must-revalidate", "max-age", "s-maxage", "0", "60", "-1", "x",
)  # fmt: skip
VARY = (*LIST, "Accept", "cookie", "X-A", "Authorization")
DATES = (
    "Fri, 01 Jan 2100 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, ", "01 ", "Jan ", "2100 ", "0000 ", "9999 ",
    "24:60:61 ", "00:00:00 ", "GMT", "+0000", "-1", "0",
)  # fmt: skip
cache_control = st.lists(of_pieces(*CACHE_CONTROL), max_size=3)
vary = st.lists(of_pieces(*VARY), max_size=3)
fields = st.lists(
    st.one_of(
        st.tuples(st.just("Cache-Control"), of_pieces(*CACHE_CONTROL)),
        st.tuples(st.just("Vary"), of_pieces(*VARY)),
        st.tuples(st.sampled_from(["Expires", "Date"]), of_pieces(*DATES)),
        st.tuples(st.just("Age"), of_pieces("0", "1", "60", "-", ".", " ", "\u0661")),
        st.tuples(st.just("Content-Type"), of_pieces("text/event-stream", "text/plain", ";", " ", "/", "charset=")),
        st.tuples(st.just("Content-Security-Policy"), of_pieces("script-src ", "'nonce-", "'", "'NONCE-1'")),
        st.tuples(st.sampled_from(["Set-Cookie", "WWW-Authenticate", "X-A"]), of_pieces("a", "=", " ")),
    ),
    max_size=5,
)
statuses = st.sampled_from([200, 201, 202, 204, 206, 301, 302, 303, 304, 307, 308, 401, 404, 429, 500])


def judged(
    headers: list[tuple[str, str]], status: int = 200, *, credentials: bool = False, authorized: bool = False
) -> Verdict:
    return judge(
        status,
        CIMultiDict(headers),
        authorized=authorized,
        has_credentials=credentials,
        in_identity=lambda name: name not in {"authorization", "user-agent"},
        now=1e9,
    )


def members_by_the_book(lines: list[str]) -> list[str]:
    """The members of a list, character by character (RFC 9110, 5.6.1 and 5.6.4)."""
    members = [""]
    quoted = escaped = False
    for character in ",".join(lines):
        if not quoted and character == ",":
            members.append("")
            continue
        members[-1] += character
        if escaped:
            escaped = False
        elif quoted and character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
    return [member.strip(" \t") for member in members if member.strip(" \t")]


# Cache-Control and Vary.


@tried
@given(st.one_of(cache_control, vary))
def test_lists_are_split_by_the_book(lines: list[str]) -> None:
    assert list_members(lines) == members_by_the_book(lines)


@tried
@given(cache_control)
def test_each_directive_that_is_there_restricts_and_no_other_permits(lines: list[str]) -> None:
    plain: dict[str, list[str | None]] = {}
    for member in members_by_the_book(lines):
        name, equals, argument = member.partition("=")
        if TOKEN.match(name) and (not equals or TOKEN.match(argument)):
            plain.setdefault(name.lower(), []).append(argument if equals else None)
    assert permissions(lines) == plain
    assert {name.strip("'") for name in plain} <= restrictions(lines)


@tried
@given(
    cache_control,
    st.sampled_from(["no-store", "NO-STORE", 'no-store="x, y"', "no-store=1", " no-store\t", ",no-store,"]),
)
def test_no_line_hides_a_restriction_that_stands_on_another(lines: list[str], line: str) -> None:
    for position in range(len(lines) + 1):
        assert "no-store" in restrictions([*lines[:position], line, *lines[position:]])


@tried
@given(of_pieces(*[piece for piece in CACHE_CONTROL if piece not in {'"', "\\"}]))
def test_what_is_quoted_permits_nothing(text: str) -> None:
    quoted = text.replace("\\", "").replace('"', "")
    lines = [f'x="{quoted}"']
    assert permissions(lines) == {}
    headers = CIMultiDict({"Cache-Control": lines[0]})
    assert not is_fresh(headers, now=0.0)
    assert not is_for_others(headers)


@tried
@given(vary)
def test_vary_gives_tokens_or_nothing(lines: list[str]) -> None:
    members = members_by_the_book(lines)
    if all(TOKEN.match(member) and member != "*" for member in members):
        assert vary_names(lines) == tuple(dict.fromkeys(member.lower() for member in members))
    else:
        assert vary_names(lines) is None
    for position in range(len(lines) + 1):
        assert vary_names([*lines[:position], "*", *lines[position:]]) is None


@tried
@given(fields, statuses, st.booleans(), st.booleans())
def test_any_answer_is_judged(headers: list[tuple[str, str]], status: int, credentials: bool, authorized: bool) -> None:
    verdict = judged(headers, status, credentials=credentials, authorized=authorized)
    assert all(TOKEN.match(name) for name in verdict.vary)
    fetched = judge_fetched(status, CIMultiDict(headers), lambda name: False)
    assert fetched.reason in {None, Unshared.STREAM}
    for restriction in (("Cache-Control", "no-store"), ("Vary", "*"), ("Set-Cookie", "a=1")):
        restricted = judged([*headers, restriction], status, credentials=credentials, authorized=authorized)
        assert restricted.reason is not None
    if verdict.reason is None and status in {201, 202, 302, 303, 307}:
        assert is_fresh(CIMultiDict(headers), now=1e9)


NO_STORE, NO_CACHE, PRIVATE = Unshared.NO_STORE, Unshared.NO_CACHE, Unshared.PRIVATE


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([""], None),
        ([" , ,\t,"], None),
        (["public"], None),
        (["max-age=0"], None),
        (["unknown, x=y, z=\"no-store\""], None),
        (["x=\"a, no-store, b\""], None),
        (["x=\"a\\\", no-store\""], None),
        (["no-storex, xno-store, no_store"], None),
        (["no-transform, only-if-cached, immutable"], None),
        (["no-store"], NO_STORE),
        (["No-STORE"], NO_STORE),
        (["  no-store\t"], NO_STORE),
        (["max-age=60,no-store"], NO_STORE),
        (["public", "no-store"], NO_STORE),
        (["no-store="], NO_STORE),
        (["no-store=x"], NO_STORE),
        (['no-store="x'], NO_STORE),
        (["no-store;"], NO_STORE),
        (["no-store\xa0"], NO_STORE),
        (['"no-store"'], NO_STORE),
        (["public no-store"], NO_STORE),
        (["public;no-store"], NO_STORE),
        (['x="', "no-store", '"'], NO_STORE),
        (["no-cache"], NO_CACHE),
        (['no-cache="Set-Cookie"'], NO_CACHE),
        (['no-cache="a, b", max-age=60'], NO_CACHE),
        (["no-cache=Set-Cookie"], NO_CACHE),
        (['no-cache=""'], NO_CACHE),
        (["no-cache", "no-cache"], NO_CACHE),
        (["private"], PRIVATE),
        (['private="X-User"'], PRIVATE),
        (["private=X-User"], PRIVATE),
        (["PRIVATE, public"], PRIVATE),
        (["public, private"], PRIVATE),
        (["private, no-store"], NO_STORE),
    ],
)  # fmt: skip
def test_odd_restrictions(lines: list[str], reason: Unshared | None) -> None:
    assert judged([("Cache-Control", line) for line in lines]).reason is reason


@pytest.mark.parametrize(
    ("line", "for_others"),
    [
        ("public", True),
        ("PUBLIC", True),
        ("must-revalidate", True),
        ("s-maxage=0", True),
        ("s-maxage=2147483648", True),
        ("x=1, public", True),
        ("s-maxage", False),
        ("s-maxage=", False),
        ("s-maxage=-1", False),
        ("s-maxage=1.5", False),
        ('s-maxage="5"', False),
        ("s-maxage=99999999999999999999", False),
        ("s-maxage=\u0665", False),
        ("s-maxage = 5", False),
        ("public=", False),
        ("public=yes", False),
        ('"public"', False),
        ('x="public', False),
        ("proxy-revalidate, max-age=60", False),
        ("publi\u0441", False),  # a Cyrillic letter
    ],
)
def test_odd_permissions_for_others_than_the_one_with_the_authorization(line: str, for_others: bool) -> None:
    verdict = judged([("Cache-Control", line)], authorized=True)
    assert verdict.reason is (None if for_others else Unshared.AUTHORIZATION)


@pytest.mark.parametrize("status", [201, 202, 302, 303, 307])
def test_answers_that_may_be_for_one_need_freshness(status: int) -> None:
    assert judged([], status) == Verdict(Unshared.NO_FRESHNESS, str(status))
    assert judged([("Cache-Control", "max-age=60")], status).reason is None
    assert judged([("Cache-Control", "max-age=60"), ("Age", "60")], status).reason is Unshared.NO_FRESHNESS
    assert judged([("Cache-Control", "max-age=60, no-store")], status).reason is NO_STORE


# Cookie, Forwarded, and the selection of headers.

SELECTION = Selection(None, DEFAULT_IGNORE_HEADERS, DEFAULT_IGNORE_COOKIES)
SLOT = "\0"
COOKIES = (
    f"_ga={SLOT}", f"_gid={SLOT}", f" _ga={SLOT}; ", f"_ga={SLOT};", "session=1", "session", "a", "=", ";", "; ", " ",
    "\t", '"', "\\", ",", "Path=/", "$Version=1", "_ga", "_GA=1", "é",
)  # fmt: skip
FORWARDED = (
    f"for={SLOT}", f"for={SLOT};", f";by={SLOT}", "host=a", 'host="a"', "proto=https", "Host=b", ";", ",", ", ", " ",
    '"', "\\", "=", "host", "for=1", ":80", "[::1]",
)  # fmt: skip


def received(pairs: list[tuple[str, str]]) -> web.Request:
    """A request as aiohttp's parser makes it of these headers."""
    transport = mock.Mock(get_extra_info=lambda _name, _default=None: ("127.0.0.1", 1))
    request = make_mocked_request("GET", "/", transport=transport)
    headers = CIMultiDictProxy(CIMultiDict(pairs))
    raw = tuple([(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in pairs])
    request._message = request._message._replace(headers=headers, raw_headers=raw)
    request._headers = headers
    return request


def requested(name: str, *values: str) -> web.Request:
    return received([("Host", "localhost"), *[(name, value) for value in values]])


def with_slots(pieces: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=10).map("".join)


@tried
@given(with_slots(COOKIES))
@example(f'theme="a; _ga={SLOT}; b"')
def test_cookies_that_are_left_out_are_no_others_to_aiohttp(line: str) -> None:
    one, other = [requested("Cookie", line.replace(SLOT, value)) for value in ("GA1.1", "GA1.2")]
    if SELECTION.headers_of(one) == SELECTION.headers_of(other):
        seen = [
            [(name, value) for name, value in request.cookies.items() if not name.startswith("_g")]
            for request in (one, other)
        ]
        assert seen[0] == seen[1]


@tried
@given(with_slots(FORWARDED))
def test_of_forwarded_what_is_left_out_is_no_host_and_no_proto_to_aiohttp(line: str) -> None:
    one, other = [requested("Forwarded", line.replace(SLOT, value)) for value in ("x", "y")]
    if SELECTION.headers_of(one) == SELECTION.headers_of(other):
        seen = [
            [(element.get("host"), element.get("proto")) for element in request.forwarded] for request in (one, other)
        ]
        assert seen[0] == seen[1]


@tried
@given(
    st.one_of(st.binary(max_size=60), of_pieces(*FORWARDED).map(lambda text: text.encode("utf-8", "surrogateescape")))
)
def test_forwarded_is_cut_once(line: bytes) -> None:
    kept = forwarded_host_and_proto(line)
    assert forwarded_host_and_proto(kept) == kept


names = st.one_of(
    st.sampled_from(["Cookie", "Forwarded", "Authorization", "User-Agent", "X-Forwarded-For", "X-A", "x-a", "Accept"]),
    st.text("abXY-_*1", min_size=1, max_size=6),
)
pairs = st.lists(st.tuples(names, of_pieces(*COOKIES, *FORWARDED, "text/event-stream", "websocket")), max_size=6)


@tried
@given(pairs, pairs)
def test_any_headers_make_an_identity(some: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    one, other = received(some), received(others)
    for selection in (SELECTION, Selection(("Accept", "Cookie"), DEFAULT_IGNORE_HEADERS, DEFAULT_IGNORE_COOKIES)):
        same = selection.headers_of(one) == selection.headers_of(other)
        assert hash(selection.headers_of(one)) == hash(selection.headers_of(one))
        for name in {name.lower() for name, _ in [*some, *others]}:
            if same and selection.holds_all_of(name) and name != "cookie":
                assert one.headers.getall(name, []) == other.headers.getall(name, [])
        hash(selection.learned_of(one, ["", "(remote)", "user-agent", "x-a"]))
        assert selection.difference(one, one) is None
        difference = selection.difference(one, other)
        assert (difference is None) == (selection.learned_of(one, [""]) == selection.learned_of(other, [""]))
        credentials = {name.lower() for name, value in some if value.strip()} & {"authorization", "cookie"}
        assert not selection.has_credentials(one) or credentials
        assert isinstance(local_only(one), bool)


@pytest.mark.parametrize(
    ("header", "value", "holds"),
    [
        ("Authorization", "Basic x", True),
        ("Authorization", "  ", False),
        ("Cookie", "session=1", True),
        ("Cookie", "_ga=1", False),
        ("Cookie", "_ga=1; session=1", True),
        ("Cookie", "session=", False),
        ("Cookie", "session", False),
        ("Cookie", "", False),
        ("Cookie", ";;=;", False),
        ("X-User", "alice", False),
    ],
)
def test_what_says_for_whom_a_private_answer_is(header: str, value: str, holds: bool) -> None:
    assert SELECTION.has_credentials(requested(header, value)) is holds


# What is taken for names, and what is written to Cache-Status.


@tried
@given(st.one_of(st.text(max_size=20), of_pieces("a", "*", "Accept", " ", '"', "\\", ":", "/", "\n", "é")))
def test_names_are_taken_or_refused(name: str) -> None:
    checks: list[Callable[[], Any]] = [
        lambda: arguments.header_names("headers", (name,), wildcards=False),
        lambda: arguments.header_names("ignore_headers", (name,), wildcards=True),
        lambda: arguments.cookie_names("ignore_cookies", (name,)),
    ]
    for is_wild, check in enumerate(checks):
        plain = name.removesuffix("*") if is_wild else name
        try:
            assert check() == {name}
        except ValueError:
            assert not TOKEN.match(plain) or "*" in plain
        else:
            assert TOKEN.match(plain)


def parsed_item(text: str) -> tuple[str, dict[str, str | bool]]:
    """The one member of a list, an sf-token or sf-string with parameters (RFC 8941, 4.2.1 to 4.2.6)."""
    token = re.compile(r"[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*")
    string = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
    parameter = re.compile(r"; *([a-z*][a-z0-9_\-.*]*)(?:=(\?[01]|[A-Za-z*][!#$%&'*+\-.^_`|~0-9A-Za-z:/]*))?")
    match = token.match(text)
    if match is not None:
        name = match.group()
    else:
        match = string.match(text)
        assert match is not None
        name = re.sub(r"\\(.)", r"\1", match.group(1))
    found: dict[str, str | bool] = {}
    position = match.end()
    while position < len(text):
        one = parameter.match(text, position)
        assert one is not None
        value = one.group(2)
        found[one.group(1)] = True if value in {None, "?1"} else False if value == "?0" else value
        position = one.end()
    return name, found


@tried
@given(st.one_of(st.text(max_size=20), st.text("aZ*:/ \\\"'1;,=\x7f\n", max_size=8)))
def test_cache_status_is_written_by_the_book(name: str) -> None:
    try:
        written = arguments.cache_status(name)
    except ValueError:
        assert not name or any(not " " <= character <= "~" for character in name)
        return
    assert written is not None
    for collapsed in (True, False):
        value = "collapsed" if collapsed else "collapsed=?0"
        assert parsed_item(f"{written}; fwd=miss; {value}") == (name, {"fwd": "miss", "collapsed": collapsed})


def test_an_answer_without_any_of_these_fields_is_for_all() -> None:
    assert judged([("X-A", text_of(bytes(range(256))))], credentials=True) == SHARED._replace(unauthorized_only=True)


if __name__ == "__main__":
    for label, test in list(globals().items()):
        if hasattr(test, "hypothesis") and (label in sys.argv[2:] or len(sys.argv) < 3):
            sys.stderr.write(f"{label} ...\n")
            test()
