"""A content coding of a streamed body: each chunk is compressed once for all readers that negotiated the coding."""

import asyncio

from .. import _aiohttp
from ..broadcast import Broadcast, Chunk


class Coding:
    """One coding of one broadcast's chunks, in their order.

    Every reader goes through all chunks, so that one without this form is the next to be compressed: whoever comes
    to it first does that, and the others wait. The forms are kept with the chunks.
    """

    __slots__ = ("_broadcast", "_compressor", "_last", "_loop", "_under_way")

    def __init__(self, broadcast: Broadcast, encoding: str, strategy: int | None) -> None:
        self._broadcast = broadcast
        self._compressor = _aiohttp.Compressor(encoding, strategy)
        self._loop = asyncio.get_running_loop()
        # The chunk that is being compressed in a thread; it must not be interrupted, whoever began it may leave.
        self._under_way: asyncio.Task[bytes] | None = None
        self._last: bytes | None = None

    async def of(self, chunk: Chunk) -> bytes:
        """The compressed form of the next chunk of a reader; empty where the compressor keeps it for later."""
        while True:
            form = None if chunk.forms is None else chunk.forms.get(self)
            if form is not None:
                return form
            if self._under_way is None:
                form = self._compressor.compress_now(chunk.data)
                if form is not None:
                    self._broadcast.keep(chunk, self, form)
                    return form
                self._under_way = self._loop.create_task(self._compress(chunk))
            await asyncio.wait([self._under_way])

    async def of_data(self, data: bytes) -> bytes:
        """The compressed form of a chunk that is not kept, as nobody but the one who asks reads."""
        form = self._compressor.compress_now(data)
        return await self._compressor.compress(data) if form is None else form

    def last(self) -> bytes:
        """What comes after the last chunk."""
        if self._last is None:
            self._last = self._compressor.flush()
        return self._last

    async def _compress(self, chunk: Chunk) -> bytes:
        try:
            form = await self._compressor.compress(chunk.data)
            self._broadcast.keep(chunk, self, form)
            return form
        finally:
            self._under_way = None
