"""A content coding of a streamed body: each chunk is compressed once for all readers that negotiated the coding."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from .. import _aiohttp
from ..broadcast import Broadcast, Chunk


class Coding:
    """One coding of one broadcast's chunks, in their order.

    Every reader goes through all chunks, so that one without this form is the next to be compressed: whoever comes
    to it first does that, and the others wait. The forms are kept with the chunks.
    """

    __slots__ = ("_broadcast", "_compressor", "_exception", "_last", "_sealed", "_under_way")

    def __init__(self, broadcast: Broadcast, compressor: _aiohttp.Compressor) -> None:
        self._broadcast = broadcast
        self._compressor = compressor
        # The chunk that is being compressed in a thread; it must not be interrupted, whoever began it may leave.
        self._under_way: asyncio.Task[None] | None = None
        self._exception: Exception | None = None
        # What it had come to after the last chunk, and what is to be written then.
        self._sealed: _aiohttp.Compressor | None = None
        self._last: bytes | None = None

    async def of(self, chunk: Chunk) -> bytes:
        """The compressed form of the next chunk of a reader; empty where the compressor keeps it for later."""
        while True:
            form = None if chunk.forms is None else chunk.forms.get(self)
            if form is not None:
                return form
            if self._exception is not None:
                raise self._exception
            if self._under_way is None:
                form = self._compressor.compress_now(chunk.data)
                if form is not None:
                    self._broadcast.keep(chunk, self, form)
                    return form
                self._under_way = self._broadcast.loop.create_task(self._compress(chunk))
            await asyncio.wait([self._under_way])

    async def of_data(self, data: bytes) -> bytes:
        """The compressed form of a chunk that is not kept, as nobody but the one who asks reads."""
        form = self._compressor.compress_now(data)
        return await self._compressor.compress(data) if form is None else form

    @property
    def is_for_all(self) -> bool:
        """Whether it may be the first requester's too, who may write more when the others are at the end."""
        return self._compressor.can_be_copied

    def seal(self) -> None:
        """All chunks are compressed: remember that, whatever the first requester writes by itself."""
        if self._sealed is None:
            self._sealed = self._compressor.copy() if self.is_for_all else self._compressor

    async def end(self, writer: Any, write: Callable[[Any], Awaitable[None]]) -> None:
        """A reader is at the end: let its writer go on with the compressing, or at least end it."""
        self.seal()
        assert self._sealed is not None
        if self.is_for_all and _aiohttp.is_writer(writer):
            self._sealed.copy().give_back(writer)
            return
        if self._last is None:
            self._last = (self._sealed.copy() if self.is_for_all else self._sealed).flush()
        await write(self._last)

    def flush(self) -> bytes:
        """The last compressed bytes of the one whose compressor it was."""
        return self._compressor.flush()

    def give_back(self, writer: Any) -> None:
        """Let the writer that the compressor was taken from go on with it by itself."""
        self._compressor.give_back(writer)

    async def _compress(self, chunk: Chunk) -> None:
        try:
            self._broadcast.keep(chunk, self, await self._compressor.compress(chunk.data))
        except Exception as exception:
            self._exception = exception
        finally:
            self._under_way = None
