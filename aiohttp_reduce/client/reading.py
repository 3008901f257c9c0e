"""Reading a body that is on its way: a caller's own reader, between the broadcast and the caller."""

from aiohttp import ClientConnectionError, ClientPayloadError, ClientRequest, ClientResponse, StreamReader

from .. import _aiohttp
from .._aiohttp import Head, ReaderProtocol
from ..broadcast import Consumer, StalledError
from ..failures import copied


class HungUpError(Exception):
    """The session was closed."""


class Reading:
    """One caller's reader, filled from the broadcast as it empties.

    `source` is the genuine reader, which the broadcast is fed from.
    """

    __slots__ = ("_consumer", "_filling", "_head", "_protocol", "_reader", "_source")

    _reader: StreamReader

    def __init__(self, head: Head, source: StreamReader, consumer: Consumer) -> None:
        self._head = head
        self._source = source
        self._protocol = ReaderProtocol(head, self.fill, self._leave, self._lose)
        self._consumer = consumer
        self._filling = False

    async def response_for(self, request: ClientRequest) -> ClientResponse:
        """The response that reads it."""
        return await self._head.response_for(request, self._protocol, self._begin)

    def _begin(self, reader: StreamReader) -> None:
        self._reader = reader
        self._consumer.on_ready = self.fill
        self.fill()

    def fill(self) -> None:
        """Move on what was read, and feed the reader up to what aiohttp's own would hold."""
        if self._filling:
            return
        self._filling = True
        reader, consumer = self._reader, self._consumer
        try:
            consumer.has_read(reader.total_bytes - _aiohttp.unread(reader))
            while _aiohttp.unread(reader) < self._head.read_ahead:
                chunk = consumer.take()
                if chunk is None:
                    self._end()
                    return
                if not reader.total_bytes and _aiohttp.reads_in_parts(self._source):
                    reader.begin_http_chunk_receiving()  # not before the first has come does the genuine one know it
                _aiohttp.feed(reader, chunk.data, chunk.ends_part)
                if not chunk.data:
                    # It is read with what came before it, which may be long ago.
                    consumer.has_read(reader.total_bytes - _aiohttp.unread(reader))
        finally:
            self._filling = False
            _aiohttp.copy_compressed_size(reader, self._source)

    def _leave(self) -> None:
        self._consumer.on_ready = nothing  # which holds this, and this holds the consumer
        self._consumer.leave()

    def _lose(self) -> None:
        if not self._reader.is_eof() and self._reader.exception() is None:
            _aiohttp.break_off(self._reader, ClientPayloadError("Response payload is not completed"))

    def _end(self) -> None:
        consumer, reader = self._consumer, self._reader
        if consumer.at_end or consumer.exception is not None:
            consumer.on_ready = nothing
        if consumer.at_end:
            if not reader.is_eof():
                reader.feed_eof()
        elif consumer.exception is not None and reader.exception() is None:
            exception = consumer.exception
            if isinstance(exception, HungUpError):
                # What came before may still be read, as with a genuine one.
                self._protocol.hang_up()
                if _aiohttp.is_waited_for(reader):
                    _aiohttp.break_off(reader, ClientConnectionError("Connection closed"))
            elif isinstance(exception, StalledError):
                _aiohttp.break_off(reader, ClientPayloadError(f"Response payload is not completed: {exception}"))
            else:
                _aiohttp.break_off(reader, copied(exception))


def nothing() -> None:
    """Stands for what is to be called, where nothing more comes or nobody has to know."""
