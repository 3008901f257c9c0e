"""What one client middleware object was made with, checked."""

from collections.abc import Callable
from typing import Any, NamedTuple

from aiohttp import ClientRequest

from ..async_reduce_core import BaseHooks, NamedIdent
from ..async_reduce_core.hooks import guarded
from .identity import Identities


class Settings(NamedTuple):
    """The arguments of `reduce_client_middleware`; `clock` gives seconds."""

    methods: frozenset[str]
    identities: Identities
    max_age: float
    max_wait: float
    max_buffer: float
    max_buffer_total: float
    hooks: BaseHooks | None
    clock: Callable[[], float]

    def tell(self, hook: str, request: ClientRequest, *args: Any) -> None:
        """Call one of the five hooks; the identity they see reads `GET http://host/path?query`."""
        if self.hooks is not None:
            method, url = request.method, request.url
            shown = NamedIdent(f"{method} {url}", f"{method} {url.host_port_subcomponent}")
            guarded(getattr(self.hooks, hook), request, shown, *args)
