"""The outgoing sessions whose figures are shown beside the server's. What they are, this side does not know."""

import weakref
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Watchable(Protocol):
    """What has the figures of outgoing requests."""

    @property
    def stats(self) -> Mapping[str, Any]:
        """The figures as they are now, those of each host under `hosts`."""

    def forget(self, url: str) -> None:
        """Let the next request for this URL be sent anew."""


class Clients:
    """Watched sessions by name; one that nobody else holds any more is gone."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: weakref.WeakValueDictionary[str, Watchable] = weakref.WeakValueDictionary()

    def add(self, session: Watchable, name: str) -> None:
        """Watch a session. Raises TypeError or ValueError for what is none, or no name."""
        if not isinstance(name, str):
            raise TypeError(f"name takes a str, got {name!r}")
        if not name or not name.isprintable():
            raise ValueError(f"name takes printable text such as 'weather', got {name!r}")
        if not isinstance(session, Watchable) or "hosts" not in session.stats:
            raise TypeError(
                "watch() takes a ReducingClientSession or the object that reduce_client_middleware() made, "
                f"got {session!r}"
            )
        self._by_name[name] = session

    def as_dict(self) -> dict[str, Mapping[str, Any]]:
        """The figures of each, by name."""
        return {name: session.stats for name, session in sorted(self._by_name.items())}
