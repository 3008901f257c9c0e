"""The HTTP rules: what may be shared with whom (RFC 9111, applied to requests in flight). Pure functions.

Restrictive directives are recognised liberally (a malformed one counts as present), so that what is not
understood is not shared.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDict

from .stats import Unshared

_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
# A quoted string, or anything else up to the next comma (RFC 9110, 5.6.1 and 5.6.4).
# One that is not closed goes to the end. Nothing is tried twice, so that it takes linear time.
_MEMBER: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*+(?:"|\\?\Z))*+', re.DOTALL)


class Verdict(NamedTuple):
    """`reason` is None where the answer may be shared with followers whose `vary` headers are equal."""

    reason: Unshared | None = None
    vary: tuple[str, ...] = ()


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


def cache_directives(lines: Sequence[str]) -> set[str]:
    """The names of the Cache-Control directives, in lower case, whatever their arguments (RFC 9111, 5.2)."""
    return {member.split("=", 1)[0].strip(" \t\"'").lower() for member in list_members(lines)}


def vary_names(lines: Sequence[str]) -> tuple[str, ...] | None:
    """The names in Vary, in lower case; None for `*` or anything malformed (RFC 9110, 12.5.5)."""
    names = [member.lower() for member in list_members(lines)]
    if any(name == "*" or _TOKEN.match(name) is None for name in names):
        return None
    return tuple(dict.fromkeys(names))


def judge(headers: CIMultiDict[str], *, has_credentials: bool, in_identity: Callable[[str], bool]) -> Verdict:
    """Who may share an answer with these headers.

    `has_credentials`: the identity holds what the answer was made for (credentials, or a value of `key`).
    `in_identity` says of a header name in lower case whether the identity holds all of that header.
    """
    if hdrs.SET_COOKIE in headers:
        return Verdict(Unshared.SET_COOKIE)
    if hdrs.CACHE_CONTROL in headers:
        directives = cache_directives(headers.getall(hdrs.CACHE_CONTROL))
        if "no-store" in directives:
            return Verdict(Unshared.NO_STORE)
        if "no-cache" in directives:
            return Verdict(Unshared.NO_CACHE)
        if "private" in directives and not has_credentials:
            return Verdict(Unshared.PRIVATE)
    if hdrs.VARY in headers:
        names = vary_names(headers.getall(hdrs.VARY))
        if names is None:
            return Verdict(Unshared.VARY)
        return Verdict(None, tuple(name for name in names if not in_identity(name)))
    return SHARED
