"""The HTTP rules: what may be shared with whom (RFC 9111, applied to requests in flight). Pure functions.

Restrictive directives are recognised liberally (a malformed one counts as present), permissive ones only where
they are well-formed and outside quotes: what is not understood is not shared.
"""

import re
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDict, MultiMapping

from .stats import Unshared

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
# A quoted string, or anything else up to the next comma (RFC 9110, 5.6.1 and 5.6.4).
# One that is not closed goes to the end. Nothing is tried twice, so that it takes linear time.
_MEMBER: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z))*+', re.DOTALL)
# A directive whose argument, if any, is a token (RFC 9111, 5.2).
_PLAIN_DIRECTIVE: Final = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?:=([!#$%&'*+\-.^_`|~0-9A-Za-z]+))?\Z")
_DELTA_SECONDS: Final = re.compile(r"[0-9]{1,10}\Z")
# RFC 9110, 5.6.7, the preferred form alone.
# (A year such as 0050 would be taken for 2050.)
_IMF_FIXDATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} [1-9]\d{3} \d\d:\d\d:\d\d GMT\Z", re.ASCII
)

# They judge the one who asked (RFC 9110, 15.5; 421: 15.5.20; 425: RFC 8470; 429, 431, 511: RFC 6585).
_JUDGES: Final = frozenset({401, 403, 407, 421, 425, 429, 431, 511})
# Their Location, or what they report, may be for one alone; 301 and 308 are for all (RFC 9110, 15.3 and 15.4).
_MAY_BE_FOR_ONE: Final = frozenset({201, 202, 302, 303, 307})
_AUTHENTICATION: Final = (
    hdrs.WWW_AUTHENTICATE,
    hdrs.PROXY_AUTHENTICATE,
    "Authentication-Info",
    "Proxy-Authentication-Info",
)
_SECURITY_POLICIES: Final = ("Content-Security-Policy", "Content-Security-Policy-Report-Only")
_STREAMED_TYPES: Final = ("text/event-stream", "multipart/x-mixed-replace")


class Verdict(NamedTuple):
    """Who may share an answer.

    `reason` is None where it may be shared with followers whose `vary` headers are equal to the leader's and,
    with `unauthorized_only`, who bear no Authorization. `name` is the status or header that is the reason.
    """

    reason: Unshared | None = None
    name: str | None = None
    vary: tuple[str, ...] = ()
    unauthorized_only: bool = False


SHARED: Final = Verdict()


def list_members(lines: Sequence[str]) -> list[str]:
    """The members of a list-valued field, all its lines joined, empty members left out (RFC 9110, 5.3, 5.6.1)."""
    joined = ",".join(lines)
    members: list[str] = []
    position = 0
    while position <= len(joined):
        match = _MEMBER.match(joined, position)
        end = match.end() if match else len(joined)
        if member := joined[position:end].strip(" \t"):
            members.append(member)
        position = end + 1
    return members


def restrictions(lines: Sequence[str]) -> set[str]:
    """The words in Cache-Control that may be a restrictive directive, in lower case (RFC 9111, 5.2.2).

    Liberally: of each member whatever stands before its argument, or any other character that no directive
    has; and every word of a member whose quotes or spaces are not where they belong.
    """
    words: set[str] = set()
    members = list_members(lines)
    if len(lines) > 1:
        # A quote that is open in one line and closed in another hides what is between them.
        members += [member for line in lines for member in list_members([line])]
    for member in members:
        name, _, argument = member.partition("=")
        if _TOKEN.match(name) is not None and _is_argument(argument):
            words.add(name.lower().strip("'"))
        else:
            words.update(re.findall(r"[a-z0-9-]+", member.lower()))
    return words


def _is_argument(text: str) -> bool:
    """Whether this is what may follow the `=` of a directive: nothing, a token or one quoted string."""
    return not text or _TOKEN.match(text) is not None or re.match(r'"(?:[^"\\]|\\.)*"\Z', text, re.DOTALL) is not None


def permissions(lines: Sequence[str]) -> dict[str, list[str | None]]:
    """The well-formed directives of Cache-Control with a token or no argument, by name in lower case.

    The value has the argument of each time that the directive stands there. A quoted argument is none of those
    that permit something (RFC 9111, 5.2.2.1: `max-age=5`, not `max-age="5"`).
    """
    found: dict[str, list[str | None]] = {}
    for member in list_members(lines):
        match = _PLAIN_DIRECTIVE.match(member)
        if match is not None:
            found.setdefault(match.group(1).lower(), []).append(match.group(2))
    return found


def vary_names(lines: Sequence[str]) -> tuple[str, ...] | None:
    """The names in Vary, in lower case; None for `*` or anything malformed (RFC 9110, 12.5.5)."""
    members = list_members(lines)
    # (Before they are folded: there is more than one letter whose small form is a "k".)
    if any(name == "*" or _TOKEN.match(name) is None for name in members):
        return None
    return tuple(dict.fromkeys([name.lower() for name in members]))


def is_fresh(headers: CIMultiDict[str], now: float) -> bool:
    """Whether the answer says for how long it is fresh, and that is longer than it is old (RFC 9111, 4.2).

    `now` is in seconds since the epoch. s-maxage goes before max-age, and that before Expires; what is
    malformed, or says two things, says nothing, and where that is Date or Age, nothing is fresh.
    """
    date = _time(headers.getall(hdrs.DATE)) if hdrs.DATE in headers else now
    ages = headers.getall(hdrs.AGE, ("0",))
    age = _seconds(ages[0]) if len(ages) == 1 else -1
    if date is None or age < 0:
        return False
    lifetime = _lifetime(headers, date)
    return lifetime is not None and lifetime > max(age, now - date)


def _lifetime(headers: CIMultiDict[str], date: float) -> float | None:
    """For how many seconds the answer says that it is fresh, if it was made at this time; None if it does not."""
    members = list_members(headers.getall(hdrs.CACHE_CONTROL, ()))
    directives = permissions(headers.getall(hdrs.CACHE_CONTROL, ()))
    for name in ("s-maxage", "max-age"):
        if any(member.lower().startswith(name) for member in members):
            values = directives.get(name, [])
            return _seconds(values[0]) if len(values) == 1 else None
    expires = _time(headers.getall(hdrs.EXPIRES, ()))
    return None if expires is None else expires - date


def _time(lines: Sequence[str]) -> float | None:
    """The one date in these lines, in seconds since the epoch; None for anything else."""
    if len(lines) != 1 or _IMF_FIXDATE.match(lines[0]) is None:
        return None
    try:
        return parsedate_to_datetime(lines[0]).timestamp()
    except (ValueError, OverflowError):
        return None


def is_for_others(headers: CIMultiDict[str]) -> bool:
    """Whether an answer to a request with Authorization says that it may be shared (RFC 9111, 3.5)."""
    directives = permissions(headers.getall(hdrs.CACHE_CONTROL, ()))
    if None in directives.get("public", ()) or None in directives.get("must-revalidate", ()):
        return True
    return any(_seconds(age) >= 0 for age in directives.get("s-maxage", ()))


def _seconds(argument: str | None) -> int:
    """The value of a delta-seconds argument (RFC 9111, 1.2.2), or -1."""
    return int(argument) if argument is not None and _DELTA_SECONDS.match(argument) else -1


def judge(
    status: int,
    headers: CIMultiDict[str],
    *,
    authorized: bool,
    has_credentials: bool,
    in_identity: Callable[[str], bool],
    now: float,
) -> Verdict:
    """Who may share an answer with this status and these headers.

    `authorized`: the leader's request bears Authorization. `has_credentials`: the identity holds whom the answer
    was made for (credentials, or a value of `key`). `in_identity` says of a request header's name in lower case
    whether the identity holds all of that header. `now` is in seconds since the epoch.
    """
    reason = _for_nobody_else(status, headers)
    if reason is not None:
        return reason
    said = restrictions(headers.getall(hdrs.CACHE_CONTROL)) if hdrs.CACHE_CONTROL in headers else ()
    for word, restricted in (("no-store", Unshared.NO_STORE), ("no-cache", Unshared.NO_CACHE)):
        if word in said:
            return Verdict(restricted)
    if "private" in said and not has_credentials:
        return Verdict(Unshared.PRIVATE)
    if status in _MAY_BE_FOR_ONE and not is_fresh(headers, now):
        return Verdict(Unshared.NO_FRESHNESS, str(status))
    unauthorized_only = not in_identity("authorization") and not is_for_others(headers)
    if unauthorized_only and authorized:
        return Verdict(Unshared.AUTHORIZATION)
    names = vary_names(headers.getall(hdrs.VARY, ()))
    if names is None:
        return Verdict(Unshared.VARY)
    vary = tuple(name for name in names if not in_identity(name))
    return Verdict(None, None, vary, unauthorized_only)


def judge_fetched(status: int, headers: MultiMapping[str], counts: Callable[[str], bool]) -> Verdict:
    """Who may share an answer that one session fetched, among those of its callers whose requests are identical.

    All of them are the same client with the same credentials, so that everybody may have what anybody may, but what
    is endless or a connection of one's own. `counts` says of a request header's name in lower case whether it is
    in the identity; a `vary` of `("*",)` in the verdict stands for all that are not (RFC 9110, 12.5.5).
    """
    if status == 101 or _is_endless(headers):
        return Verdict(Unshared.STREAM)
    if hdrs.VARY not in headers:
        return SHARED
    names = vary_names(headers.getall(hdrs.VARY))
    if names is None:
        return Verdict(None, None, ("*",))
    return Verdict(None, None, tuple([name for name in names if not counts(name)]))


def _for_nobody_else(status: int, headers: CIMultiDict[str]) -> Verdict | None:
    """The verdict on what is for the one who asked, whatever it says about caching."""
    if status < 200 or _is_endless(headers):
        return Verdict(Unshared.STREAM)
    if hdrs.SET_COOKIE in headers:
        return Verdict(Unshared.SET_COOKIE)
    if status in _JUDGES:
        return Verdict(Unshared.STATUS, str(status))
    for name in _AUTHENTICATION:
        if name in headers:
            return Verdict(Unshared.AUTHENTICATION, name.lower())
    if "Clear-Site-Data" in headers:
        return Verdict(Unshared.CLEAR_SITE_DATA)
    for name in _SECURITY_POLICIES:
        # The words of a policy are compared without regard to case (CSP 3, 2.3.1).
        if name in headers and any("'nonce-" in line.lower() for line in headers.getall(name)):
            return Verdict(Unshared.CSP_NONCE)
    return None


def _is_endless(headers: MultiMapping[str]) -> bool:
    """Whether Content-Type, in whichever of its lines, says that this is a stream of events, or of parts for one."""
    said = ",".join(headers.getall(hdrs.CONTENT_TYPE, ())).lower()
    return any(streamed in said for streamed in _STREAMED_TYPES)
