"""Why a request does not wait for the one in flight on its URL: for the debug log, and nothing else."""

from collections.abc import Iterable
from typing import Any, Final

from .._aiohttp import EVERYTHING, REMOTE
from ..headers import differing
from .leading import key_of
from .table import Arrival, RequestFlight, RequestTable

# The parts of `Arrival.identity`, in their order, but for the headers and what was learned.
_PARTS: Final = ("target", "route", "scheme", "HTTP version", "host", "host", "TLS client certificate", "key")
_OTHER_NAMES: Final = {REMOTE: "remote", EVERYTHING: "headers that are left out"}
# Strangers make up names of headers.
_MAX_NAMES: Final = 5
_MAX_NAME: Final = 80


def why_apart(table: RequestTable, arrival: Arrival, elder: RequestFlight | None, now: float) -> str:
    """In what the request differs from the first one on its target, or why it may not join `elder`, its like."""
    if elder is not None:
        return "that in flight is from before a write" if now < elder.closes else "that in flight is older than max_age"
    first: Any = table.flights.get(arrival.target)
    if not isinstance(first, RequestFlight):
        return "differs from those in flight"
    led = Arrival(table, arrival.target, first.subject, first.certificate, first.key_value, arrival.route)
    names = _differs_in(led.identity, arrival.identity, arrival.route.learned)
    shown = [name[:_MAX_NAME] for name in names[:_MAX_NAMES]] + ["..."] * (len(names) > _MAX_NAMES)
    return f"differs in {', '.join(shown)}" if names else "differs from those in flight"


def _differs_in(one: Any, other: Any, learned: Iterable[str]) -> list[str]:
    names = [name for name, mine, its in zip(_PARTS, one, other, strict=False) if not _equal(mine, its)]
    key = _PARTS.index("key")
    if "key" in names and _equal(key_of(one[key]), key_of(other[key])):
        names[names.index("key")] = "an item of the request"
    names += differing(one[-2], other[-2])
    # (What an identity has of them is empty where the route knew of none, or does not remember them any more.)
    looked_at = zip(learned, one[-1], other[-1], strict=False)
    names += [_OTHER_NAMES.get(name, name) for name, mine, its in looked_at if mine != its]
    return list(dict.fromkeys(names))


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        return False
