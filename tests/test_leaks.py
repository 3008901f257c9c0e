"""Nobody is handed the secret of another user: each way in which requests may differ, in each form of an answer, and a
short hunt among random ones. `python -m tests.leaks` is the long one."""

import random
from collections.abc import Mapping
from typing import Any

import pytest

from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS
from tests import leaks, leaks_incoming, leaks_outgoing
from tests.leaks_incoming import FORMS, Ask, Options, Route, World
from tests.leaks_outgoing import Call, Hunt, Kind
from tests.secrets_of import Findings
from tests.virtual import run_virtually

pytestmark = [
    pytest.mark.filterwarnings("ignore:It is recommended to use web:Warning"),
    pytest.mark.filterwarnings("ignore:.*(BasicAuth|auth).*:DeprecationWarning"),
]

_DEFAULT: dict[str, Any] = {"ignore_headers": DEFAULT_IGNORE_HEADERS, "ignore_cookies": DEFAULT_IGNORE_COOKIES}
_JUST_ACCEPT: dict[str, Any] = {"headers": ("Accept",)}


def meet(
    route: Route, asks: list[Ask], middleware: Mapping[str, Any] = _DEFAULT, **options: Any
) -> tuple[int, Findings]:
    """Let these come at once to a route; how many runs that took, and what was found in the answers."""
    world = World(Options(middleware, middleware, **options), [route], random.Random(0))
    # All wait for the first one, who looks at once and then takes its time.
    visits = [(0.001 * number, ask) for number, ask in enumerate(asks)]
    world.pause_always = True
    findings = run_virtually(lambda loop: leaks_incoming.hunt_in(loop, world, visits, tricks=False))
    assert findings.whole + findings.broken == len(asks)
    assert not findings.foreign
    assert not findings.wrong
    return world.runs, findings


def asks_of(channel: str, *users: str, app: str = "root", **carries: str) -> list[Ask]:
    """A request of each of these users, whose name is in one channel."""
    return [Ask(app, 0, {**carries, channel: user}) for user in users]


# How a handler looks, what the middleware is told, and how the applications are put together.
WAYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("header", _DEFAULT, {}),
    ("header", _JUST_ACCEPT, {}),
    ("any case", _JUST_ACCEPT, {}),
    ("all headers", _JUST_ACCEPT, {}),
    ("raw headers", _DEFAULT, {}),
    ("agent", _DEFAULT, {}),
    ("credentials", _DEFAULT, {}),
    ("cookie", _DEFAULT, {}),
    ("cookie", _JUST_ACCEPT, {}),
    ("cookie header", _JUST_ACCEPT, {}),
    ("analytics", {"ignore_cookies": ()}, {}),
    ("query", _DEFAULT, {}),
    ("target", _JUST_ACCEPT, {}),
    ("path", _DEFAULT, {}),
    ("host", _JUST_ACCEPT, {}),
    ("host header", _JUST_ACCEPT, {}),
    ("url", _JUST_ACCEPT, {}),
    ("forwarded", _DEFAULT, {}),
    ("remote", _DEFAULT, {}),
    ("remote", _DEFAULT, {"clones": "remote"}),
    ("remote", _DEFAULT, {"clones": "remote", "key": "remote"}),
    ("remote", _DEFAULT, {"inner_clones": True}),
    ("clone", _DEFAULT, {}),
    ("version", _JUST_ACCEPT, {}),
    ("item", _DEFAULT, {}),
    ("item", _DEFAULT, {"item": leaks_incoming.Account}),
    ("item", _DEFAULT, {"item": leaks_incoming.as_dict}),
    ("all items", _DEFAULT, {}),
    ("attribute", _DEFAULT, {"attributes": True}),
    ("vary", _DEFAULT, {}),
    ("key", _DEFAULT, {"key": "address"}),
    ("key", _DEFAULT, {"key": "remote", "clones": "remote"}),
    ("key", _DEFAULT, {"key": "tuple"}),
    ("derived header", _JUST_ACCEPT, {"clones": "header"}),
    ("derived query", _DEFAULT, {"clones": "query"}),
    ("derived host", _DEFAULT, {"clones": "host"}),
]


# Each way in three forms, which land in different ways; the first and the last in all.
WAYS_AND_FORMS = [
    (*way, form) for way in WAYS for form in (FORMS if way in (WAYS[0], WAYS[-1]) else ("whole", "stream", "one-shot"))
]


@pytest.mark.parametrize(("look", "middleware", "options", "form"), WAYS_AND_FORMS)
def test_a_secret_is_for_the_exact_match_alone(
    look: str, middleware: dict[str, Any], options: dict[str, Any], form: str
) -> None:
    route = Route((look,), form, ("body", "header", "status", "reason") if form != "exception" else ("body", "header"))
    channel = World(Options(middleware, middleware, **options), [], random.Random(0)).channel(look)
    users = ("1.0", "1.1") if channel == "version" else ("u1", "u2")
    runs, findings = meet(
        route, asks_of(channel, users[0], users[1], users[0], users[1], users[0]), middleware, **options
    )
    if not ("inner_clones" in options and form in {"stream", "compressed stream"}):  # then nobody can tell
        # The first one's answer goes to those who match; who waited for it in vain runs.
        assert 2 <= runs <= 3
        assert findings.reduced == 5 - runs


@pytest.mark.parametrize("form", FORMS)
def test_a_head_and_a_get_are_two(form: str) -> None:
    asks = [Ask("root", 0, {"method": method}) for method in ("GET", "HEAD", "GET", "HEAD")]
    runs, findings = meet(Route((("header"),), form, ("body", "header")), asks)
    assert (runs, findings.reduced) == (2, 2)
    runs, findings = meet(Route(("method",), form, ("body", "header")), asks, _JUST_ACCEPT)
    assert (runs, findings.reduced) == (2, 2)


@pytest.mark.parametrize("sub_door", [None, "same", "other"])
@pytest.mark.parametrize("form", FORMS)
def test_applications_with_one_middleware_object_are_apart(form: str, sub_door: str | None) -> None:
    asks = [Ask(app, 0, {}) for app in ("root", "twin", "sub", "domain") for _ in range(2)]
    runs, _ = meet(Route(("header",), form, ("body", "header")), asks, _JUST_ACCEPT, sub_door=sub_door)
    assert runs == 4


@pytest.mark.parametrize("once", [once for once in leaks_incoming.ONCE if once != "private"])
@pytest.mark.parametrize("form", [form for form in FORMS if form != "exception"])
def test_what_is_for_one_is_for_one(once: str, form: str) -> None:
    runs, findings = meet(Route(("header",), form, once=once), asks_of("token", "u1", "u1", "u1"))
    assert (runs, findings.reduced) == (3, 0)


@pytest.mark.parametrize("carries", [{}, {"session": "u1"}, {"credentials": "u1"}])
def test_what_is_private_is_shared_with_the_same_credentials_alone(carries: dict[str, str]) -> None:
    asks = [Ask("root", 0, carries), Ask("root", 0, carries), Ask("root", 0, {**carries, "session": "u2"})]
    runs, _ = meet(Route(("header",), once="private"), asks)
    assert runs == (2 if carries else 3)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "exception"])
def test_share_shares_cookies_with_those_who_match_and_nobody_else(form: str) -> None:
    route = Route(("agent",), form, ("body", "header", "cookie", "status", "reason"), once="cookie", shares=True)
    runs, findings = meet(route, asks_of("agent", "u1", "u2", "u1"))
    assert (runs, findings.reduced) == (2, 1)


@pytest.mark.parametrize("look", ["agent", "item", "remote", "forwarded"])
@pytest.mark.parametrize("form", sorted(leaks_incoming.STREAMED))
def test_what_is_looked_at_once_a_stream_flows_is_not_told_to_another(form: str, look: str) -> None:
    channel = World(Options({}, {}), [], random.Random(0)).channel(look)
    _, findings = meet(Route(("header",), form, late=(look,)), asks_of(channel, "u1", "u2", "u1"))
    assert findings.broken == 1


def calls_in_turn(kind: Kind, calls: list[Call], *, traced: bool) -> Findings:
    """Make these calls while the first one waits, and look at what they are told."""
    hunt = Hunt([kind], random.Random(1), "in turn", tricks=False, traced=float(traced))
    comes = [(0.001 * number, call) for number, call in enumerate(calls)]
    findings = run_virtually(lambda loop: leaks_outgoing.hunt_among(loop, hunt, comes))
    assert findings.whole == len(calls)
    assert not findings.foreign
    assert not findings.wrong
    return findings


@pytest.mark.parametrize("look", [look for look in leaks_outgoing.LOOKS if look not in {"method", "user", "line"}])
@pytest.mark.parametrize("form", leaks_outgoing.FORMS)
@pytest.mark.parametrize("through", ["gateway", "own"])
def test_a_call_is_told_the_secret_of_its_exact_match_alone(through: str, form: str, look: str) -> None:
    calls = []
    for user in ("u1", "u2", "u1", "u2"):
        own = {"user": user, "cookie": user} if through == "own" else {}
        session = "gateway" if through == "gateway" else user
        calls.append(Call(session, 0, {**own, look: user}))
    assert calls_in_turn(Kind((look,), form), calls, traced=True).reduced >= 1


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("form", leaks_outgoing.FORMS)
def test_calls_that_differ_in_their_session_alone_are_apart(form: str, traced: bool) -> None:
    calls = [Call(twin, 0, {}) for twin in leaks_outgoing.TWINS * 2]
    assert calls_in_turn(Kind(("line",), form), calls, traced=traced).reduced >= 2


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("first", ["GET", "HEAD"])
def test_a_call_for_a_head_and_one_for_the_whole_are_two(first: str, traced: bool) -> None:
    methods = {"GET": "HEAD", "HEAD": "GET"}
    # What the last one asks for flies with the other method, and not under the target of its own.
    asked = [(first, "u1"), (first, "u2"), (methods[first], "u1"), (methods[first], "u3"), (methods[first], "u2")]
    calls = [Call("gateway", 0, {"method": method, "token": user}) for method, user in asked]
    assert calls_in_turn(Kind(("method", "token")), calls, traced=traced).reduced == 0


def test_no_foreign_secret_among_random_requests() -> None:
    found = leaks.incoming(400, seed=7)
    assert not found.foreign
    assert not found.wrong
    assert not found.hung
    assert found.reduced > leaks.LEAST_REDUCED * found.requests, "or this shows nothing"


def test_no_foreign_secret_among_random_calls() -> None:
    found = leaks.outgoing(400, seed=7)
    assert not found.foreign
    assert not found.wrong
    assert not found.hung
    assert found.reduced > leaks.LEAST_REDUCED * found.requests, "or this shows nothing"
