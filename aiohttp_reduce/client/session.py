"""`ReducingClientSession`: used in the place of an `aiohttp.ClientSession`; identical requests in flight are sent once.

It holds a session and is none: aiohttp discourages subclassing. To type checkers it looks like one, so that code
which takes a `ClientSession` takes it too; `isinstance` says no, and `session` is the genuine one.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from aiohttp import BaseConnector, ClientSession
from aiohttp.client import _RequestContextManager
from aiohttp.typedefs import StrOrURL
from yarl import URL

from .. import _aiohttp
from ..async_reduce_core import BaseHooks
from .door import ReduceClientMiddleware
from .identity import DEFAULT_IGNORE_HEADERS
from .middleware import reduce_client_middleware

if TYPE_CHECKING:
    from typing import Unpack

    from aiohttp.client import _RequestOptions

    from .session_arguments import SessionArguments

    _Base = ClientSession

    class _Options(_RequestOptions, total=False):
        reduce: bool

else:
    _Base = object

# What stands in the wrapper itself; every other attribute is the session's.
_OWN: Final = frozenset({"_is_closed", "_owns", "_reducer", "_session"})


class ReducingClientSession(_Base):
    """A client session that sends identical requests in flight once, used in the place of `aiohttp.ClientSession`.

    - `base_url`: as `aiohttp.ClientSession` has it, for a session of its own.
    - `session`: one that is there already, instead; `close()` then leaves it open, and calls that are made with it
      directly are not reduced.
    - `methods`: the methods that are reduced; GET and HEAD by default. Only safe ones are taken.
    - `ignore_headers`: request headers that are left out of the identity, in the place of
      `aiohttp_reduce.client.DEFAULT_IGNORE_HEADERS`.
    - `max_age`: seconds for which a request in flight is joined by others. 5 by default.
    - `max_wait`: seconds that a call waits for another one's head before it also joins, or starts, a younger request.
      30 by default.
    - `max_buffer`: bytes of a body that are kept for latecomers, and by which the fastest reader may be ahead of the
      slowest. 4 MiB by default.
    - `max_buffer_total`: bytes that all bodies of this session may keep together. 64 MiB by default.
    - `hooks`: told of each request.
    - `**session_arguments`: whatever else `aiohttp.ClientSession` takes, for a session of its own.

    What these mean in full stands at `reduce_client_middleware`. `get`, `head` and `request` take `reduce=False` for
    a call that is to be sent by itself. Everything else is as `aiohttp.ClientSession` has it, attributes that are
    set included; to type checkers this is one, to `isinstance` it is not.

    Each caller gets its own `aiohttp.ClientResponse`, with its own timeouts. Beside aiohttp's own exceptions, a reader
    that held up others for too long is told so by `aiohttp.ClientPayloadError`.

    Raises TypeError or ValueError for a wrong argument, and TypeError for `session` together with arguments for a
    session.

    Example::

        async def fetch(url: str) -> bytes:
            async with ReducingClientSession(max_age=1.0) as session:
                async with session.get(url) as response:
                    return await response.read()
    """

    __slots__ = ("__weakref__", *_OWN)

    _session: ClientSession
    _reducer: ReduceClientMiddleware
    _owns: bool
    _is_closed: bool

    def __init__(
        self,
        base_url: StrOrURL | None = None,
        *,
        session: ClientSession | None = None,
        methods: Iterable[str] = ("GET", "HEAD"),
        ignore_headers: Iterable[str] = DEFAULT_IGNORE_HEADERS,
        max_age: float = 5.0,
        max_wait: float = 30.0,
        max_buffer: float = 4 * 2**20,
        max_buffer_total: float = 64 * 2**20,
        hooks: BaseHooks | None = None,
        **session_arguments: "Unpack[SessionArguments]",
    ) -> None:
        reducer = reduce_client_middleware(
            methods=methods,
            ignore_headers=ignore_headers,
            max_age=max_age,
            max_wait=max_wait,
            max_buffer=max_buffer,
            max_buffer_total=max_buffer_total,
            hooks=hooks,
        )
        if session is None:
            session_arguments["middlewares"] = (*(session_arguments.get("middlewares") or ()), reducer)
            genuine = ClientSession(base_url, **session_arguments)
        elif base_url is not None or session_arguments:
            names = ", ".join([*(["base_url"] if base_url is not None else []), *session_arguments])
            raise TypeError(f"session takes a session that is made already, and was given together with {names}")
        elif not isinstance(session, ClientSession):
            raise TypeError(f"session takes an aiohttp.ClientSession, got {session!r}")
        else:
            genuine = session
        set_own = object.__setattr__
        set_own(self, "_session", genuine)
        set_own(self, "_reducer", reducer)
        set_own(self, "_owns", session is None)
        set_own(self, "_is_closed", False)

    if TYPE_CHECKING:

        def request(self, method: str, url: StrOrURL, **kwargs: Unpack[_Options]) -> _RequestContextManager: ...

        def get(self, url: StrOrURL, **kwargs: Unpack[_Options]) -> _RequestContextManager: ...

        def head(self, url: StrOrURL, **kwargs: Unpack[_Options]) -> _RequestContextManager: ...

    else:

        def request(self, method: str, url: StrOrURL, *, reduce: bool = True, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP request; with `reduce=False`, by itself.

            Takes and returns what `aiohttp.ClientSession` does: await it, or enter it with `async with`, for a
            response. Raises RuntimeError once this is closed.
            """
            return self._call("request", (method, url), kwargs, reduce=reduce)

        def get(self, url: StrOrURL, *, reduce: bool = True, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP GET request, as `request`; with `reduce=False`, by itself."""
            if reduce and self._owns and "middlewares" not in kwargs:
                return self._session.get(url, **kwargs)  # as `_call` does, for the most common case
            return self._call("get", (url,), kwargs, reduce=reduce)

        def head(self, url: StrOrURL, *, reduce: bool = True, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP HEAD request, as `request`; with `reduce=False`, by itself."""
            return self._call("head", (url,), kwargs, reduce=reduce)

        def options(self, url: StrOrURL, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP OPTIONS request."""
            return self._call("options", (url,), kwargs)

        def post(self, url: StrOrURL, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP POST request."""
            return self._call("post", (url,), kwargs)

        def put(self, url: StrOrURL, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP PUT request."""
            return self._call("put", (url,), kwargs)

        def patch(self, url: StrOrURL, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP PATCH request."""
            return self._call("patch", (url,), kwargs)

        def delete(self, url: StrOrURL, **kwargs: Any) -> _RequestContextManager:
            """Perform an HTTP DELETE request."""
            return self._call("delete", (url,), kwargs)

        def ws_connect(self, *args: Any, **kwargs: Any) -> Any:
            """Open a WebSocket."""
            if self._is_closed:
                return _RequestContextManager(_refuse())
            return self._session.ws_connect(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            # Not before `__init__` has set what is our own.
            if name in _OWN:
                raise AttributeError(name)
            return getattr(self._session, name)

        def __setattr__(self, name: str, value: Any) -> None:
            cls = type(self)
            if cls is not ReducingClientSession and hasattr(cls, name) and not hasattr(ReducingClientSession, name):
                object.__setattr__(self, name, value)  # a subclass brought it
            else:
                setattr(self._session, name, value)

        def __delattr__(self, name: str) -> None:
            delattr(self._session, name)

    def __dir__(self) -> Iterable[str]:
        return sorted({*object.__dir__(self), *dir(self._session)})

    def __repr__(self) -> str:
        return f"<ReducingClientSession of {self._session!r}>"

    @property
    def session(self) -> ClientSession:
        """The genuine session. One of our own reduces what is requested with it, too."""
        return self._session

    @property
    def stats(self) -> dict[str, Any]:
        """The figures as they are now, those of each host under `hosts`.

        A new dict each time; what its keys count stands at `aiohttp_reduce.stats`.
        """
        return self._reducer.stats

    def forget(self, url: StrOrURL) -> None:
        """Let the next request for this URL be sent anew, whatever its query.

        Call it after a change that did not go through this session. Whoever already waits keeps the old flight.

        - `url`: str or `yarl.URL`; it may be relative to `base_url`.

        Raises TypeError or ValueError for anything but a URL.
        """
        if isinstance(url, (str, URL)):
            url = _aiohttp.absolute_url(self._session, url)
        self._reducer.forget(url)

    @property
    def closed(self) -> bool:
        """Whether this object was closed, or the session."""
        return self._is_closed or self._session.closed

    @property
    def connector(self) -> BaseConnector | None:
        """The session's connector; None once this is closed."""
        return None if self._is_closed else self._session.connector

    async def close(self) -> None:
        """Close the session, if it is our own. Whoever waits or reads then fails with aiohttp's own errors.

        One that was given is left open; only this object is closed then.
        """
        if self._owns:
            if not self._session.closed and self._session.connector_owner:
                await self._reducer.hang_up(self._session)
            await self._session.close()
        else:
            object.__setattr__(self, "_is_closed", True)

    def detach(self) -> None:
        """Leave the connector open, and be closed: as `aiohttp.ClientSession` has it."""
        if self._owns:
            self._session.detach()
        else:
            object.__setattr__(self, "_is_closed", True)

    def __enter__(self) -> None:
        raise TypeError("Use async with instead")

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Never called: it stands beside `__enter__`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    def _call(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, reduce: bool = True
    ) -> _RequestContextManager:
        """Call the session's method of this name. Ours stands last among the client middlewares (aiohttp 3.12)."""
        if self._is_closed:
            return _RequestContextManager(_refuse())
        given = kwargs.get("middlewares")
        if given is not None or not reduce or not self._owns:
            if given is None:
                given = [one for one in _aiohttp.middlewares_of(self._session) if one is not self._reducer]
            kwargs["middlewares"] = (*given, self._reducer if reduce else self._reducer.pass_on)
        call: _RequestContextManager = getattr(self._session, name)(*args, **kwargs)
        return call


def _of_the_session(name: str) -> property:
    """A property that is the session's."""

    def get(self: ReducingClientSession) -> Any:
        return getattr(self._session, name)

    return property(get, doc=getattr(ClientSession, name).__doc__)


# So that the class has them too, for those who look at it (documentation, mocks made to its specification).
for _name, _member in vars(ClientSession).items():
    if isinstance(_member, property) and not hasattr(ReducingClientSession, _name):
        setattr(ReducingClientSession, _name, _of_the_session(_name))


async def _refuse() -> Any:
    raise RuntimeError("Session is closed")
