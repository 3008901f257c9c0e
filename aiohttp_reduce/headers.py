"""Sets of header names, and the headers that name one request in a trace."""

from collections.abc import Hashable, Iterable
from typing import Final

TRACING_HEADERS: Final = frozenset({
    "traceparent", "tracestate", "baggage", "b3", "X-B3-*", "X-Request-ID", "X-Correlation-ID", "Request-ID",
    "X-Amzn-Trace-Id", "X-Cloud-Trace-Context", "sentry-trace", "uber-trace-id", "X-Datadog-*", "newrelic",
    "X-Request-Start", "X-Amz-Cf-Id", "Fly-Request-Id", "X-Azure-Ref", "X-Varnish", "CF-Ray",
})  # fmt: skip
"""Headers that name one request in a trace."""


class Names:
    """A set of names, some of them with a trailing `*`; compared in lower case if `fold`."""

    __slots__ = ("_exact", "_fold", "_prefixes")

    def __init__(self, names: Iterable[str], *, fold: bool) -> None:
        folded = [name.lower() if fold else name for name in names]
        self._exact = frozenset(name for name in folded if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in folded if name.endswith("*"))
        self._fold = fold

    def __contains__(self, name: str) -> bool:
        if self._fold:
            name = name.lower()
        return name in self._exact or name.startswith(self._prefixes)


TRACING: Final = Names(TRACING_HEADERS, fold=True)


def differing(some: Iterable[tuple[str, Hashable]], others: Iterable[tuple[str, Hashable]]) -> list[str]:
    """The names whose values are not the same, or not in the same order, in two lists of headers."""
    found: list[dict[str, list[Hashable]]] = [{}, {}]
    for values, pairs in zip(found, (some, others), strict=True):
        for name, value in pairs:
            values.setdefault(name, []).append(value)
    one, other = found
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
