"""Responses of their own for many callers of one request, built by aiohttp itself.

`ClientResponse.start()` asks its connection's protocol for a head and a reader. Here that protocol is a stand-in,
which hands over the head that was received once, and a fresh `StreamReader`: all that a response does with its
connection later (release, close, timers, callbacks, the warning where it is forgotten) is aiohttp's own code then.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Final

from aiohttp import EMPTY_PAYLOAD, ClientRequest, ClientResponse, StreamReader
from aiohttp.connector import Connection
from aiohttp.http import RawResponseMessage

_NO_CALLBACK: Final[Callable[[], None]] = lambda: None  # noqa: E731


class Head:
    """The head of a response as it was received once, for the responses of all callers.

    Its headers are immutable, and the same objects for all, as are the bytes of its body. `transport` is that of
    the connection that it came on.
    """

    __slots__ = ("_bufsize", "_key", "_message", "_output_size", "_reader_is_empty", "transport")

    def __init__(self, response: ClientResponse, request: ClientRequest) -> None:
        headers = response.headers
        version = response.version
        assert version is not None
        assert response.reason is not None
        # What `start()` takes of it, and what a class of its own may: the rest says nothing about this response.
        self._message = RawResponseMessage(
            version, response.status, response.reason, headers, response.raw_headers, False, None, False, False
        )
        content = response.content
        self._reader_is_empty = content is EMPTY_PAYLOAD
        # A reader is made with half of what it holds at most (`get_read_buffer_limits`, 3.0).
        self._bufsize = 0 if self._reader_is_empty else content.get_read_buffer_limits()[0]
        self._key = request.connection_key
        # The deprecated `output_size` (3.14) is the bytes that were sent for the request.
        self._output_size = getattr(response, "_output_size", 0)
        protocol = response.connection and response.connection.protocol
        self.transport: asyncio.Transport | None = None if protocol is None else protocol.transport

    @property
    def read_ahead(self) -> int:
        """How many bytes a reader of this response holds before it pauses: aiohttp's own measure."""
        return max(1, 2 * self._bufsize)

    def reader_for(self, request: ClientRequest, protocol: "ReaderProtocol") -> StreamReader:
        """A fresh reader that goes by the caller's clock; the empty one, which all share, where there is no body."""
        if self._reader_is_empty:
            return EMPTY_PAYLOAD
        return StreamReader(protocol, self._bufsize, timer=request._timer, loop=request.loop)  # type: ignore[arg-type]

    async def response_for(
        self, request: ClientRequest, protocol: "ReaderProtocol", fill: Callable[[StreamReader], None]
    ) -> ClientResponse:
        """A response of the request's own class, session, traces and timer, that reads what `fill` feeds its reader.

        `fill` is called before the response is started.
        """
        loop = request.loop
        reader = self.reader_for(request, protocol)
        if reader is not EMPTY_PAYLOAD:
            fill(reader)
        protocol.message = (self._message, reader)
        options: dict[str, Any] = {"stream_writer": self} if _TAKES_STREAM_WRITER else {}
        response = request.response_class(
            request.method,
            request.original_url,
            writer=None,
            continue100=None,
            timer=request._timer,
            request_info=request.request_info,
            traces=request._traces,
            loop=loop,
            session=request._session,
            **options,
        )
        request.response = response  # type: ignore[assignment]
        connection = Connection(_STAND_IN_CONNECTOR, self._key, protocol, loop)  # type: ignore[arg-type]
        try:
            await response.start(connection)
        except BaseException:
            response.close()
            connection.close()
            raise
        return response

    @property
    def output_size(self) -> int:
        """What a response asks the writer of its request (3.14)."""
        return self._output_size


# 3.12 does not know it.
_TAKES_STREAM_WRITER: Final = "stream_writer" in inspect.signature(ClientResponse).parameters


class _StandInConnector:
    """Takes back the connections that stand for the reading of one response."""

    __slots__ = ()

    force_close = False

    def _release(self, key: Any, protocol: "ReaderProtocol", *, should_close: bool = False) -> None:
        (protocol.close if should_close else protocol.let_go)()


_STAND_IN_CONNECTOR: Final = _StandInConnector()


class ReaderProtocol:
    """Stands where a response has the protocol of its connection.

    What aiohttp asks of one while a response is read (3.12 and 3.14): its flow control, whether it is connected, and
    the head. `on_read` is called when the reader got emptier, `on_release` when the response let go of it, and before
    that `on_lost` if its transport was closed.
    """

    # 3.12's reader says that it got emptier only where it believes to have paused somebody.
    _reading_paused = True
    upgraded = False
    should_close = False

    def __init__(
        self,
        head: Head,
        on_read: Callable[[], None],
        on_release: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.message: Any = None
        self.on_read: Callable[[], None] = on_read
        self.on_release: Callable[[], None] = on_release
        self.on_lost: Callable[[], None] = on_lost
        self._lost = False
        self._view: Any = head

    async def read(self) -> Any:
        """The head and the reader, once."""
        message, self.message = self.message, None
        return message

    @property
    def transport(self) -> "TransportView | None":
        """The connection's transport, to look at; closing it lets this response go, and nothing else."""
        view = self._view
        if type(view) is Head:
            transport = view.transport
            view = self._view = None if transport is None else TransportView(transport, self)
        return None if self._lost else view

    @property
    def connected(self) -> bool:
        """Whether more may come."""
        return not self._lost

    def is_connected(self) -> bool:
        """The same, as a connection asks it."""
        return not self._lost

    def pause_reading(self) -> None:
        """Nothing to do: how far a reader is filled is our own measure, as aiohttp's is lifted by `read()`."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """The reader got emptier."""
        self.on_read()

    def let_go(self) -> None:
        """The response is read, released or closed."""
        self._lost = True
        on_release = self.on_release
        self.on_read = self.on_release = self.on_lost = _NO_CALLBACK
        on_release()

    def close(self) -> None:
        """The response was closed before its end."""
        self.let_go()

    abort = close

    def lose(self) -> None:
        """The transport was closed by whoever looked at it: for this response, the connection is lost."""
        self.on_lost()
        self.let_go()

    def hang_up(self) -> None:
        """Nothing more comes; what was read so far stays."""
        self._lost = True


class Mould:
    """Casts responses of a body that is there as a whole, without building each step by step.

    A genuine response whose body has come has no connection any more, and no writer: what it holds is the head, which
    all share, and what is the caller's own. So it takes 2 us to make another, where `start()` takes 6 (bench "client,
    herd"). Only for aiohttp's own class: any other may do what it likes on the way. The attributes that are a caller's
    own are those that `ClientResponse.__init__` and `start()` set (3.12 and 3.14).
    """

    __slots__ = ("_attributes",)

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._attributes = attributes

    @classmethod
    def of(cls, response: ClientResponse) -> "Mould | None":
        """The mould of a genuine response that is nobody's yet; None where there is none."""
        if type(response) is not ClientResponse or response.connection is not None or not response.closed:
            return None
        attributes = vars(response).copy()
        if "_source_traceback" in attributes:
            return None  # in debug mode each notes where it was made
        # Looked up meanwhile, by hooks for instance.
        for name in ("_cookies", "_body", "_history"):
            attributes.pop(name, None)
        return cls(attributes)

    def cast(self, request: ClientRequest, reader: StreamReader) -> ClientResponse:
        """A response of the caller's own; its class has to be `ClientResponse`."""
        response = ClientResponse.__new__(ClientResponse)
        response.__dict__ = {
            **self._attributes,
            "content": reader,
            "_cache": {},
            "_real_url": request.original_url,
            "_url": request.url,
            "_request_info": request.request_info,
            "_timer": request._timer,
            "_traces": request._traces,
        }
        request.response = response  # type: ignore[assignment]
        return response


class TransportView(asyncio.Transport):
    """A connection's transport as one of those who read from it may see it: to look at, not to touch."""

    def __init__(self, transport: asyncio.Transport, protocol: ReaderProtocol) -> None:
        super().__init__()
        self._transport = transport
        self._stand_in = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the connection's own transport says (peername, ssl_object, ...)."""
        return self._transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        """Whether the connection is closing."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Break off this one response."""
        self._stand_in.lose()

    abort = close


WHOLE: Final = ReaderProtocol(None, _NO_CALLBACK, _NO_CALLBACK, _NO_CALLBACK)  # type: ignore[arg-type]
"""Where a reader that has all of its body has a protocol: nothing is asked of it any more."""
