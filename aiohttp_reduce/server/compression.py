"""The compressed forms of one body, made once for a herd."""

from aiohttp import web

from .. import _aiohttp
from ..async_reduce_core import AsyncReducer


class SharedCompression:
    """The compressed forms of one body: each coding is made once for the herd, leader included."""

    __slots__ = ("_body", "_done", "_reducer")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._done: dict[web.ContentCoding, bytes] = {}
        self._reducer = AsyncReducer()

    def attach(self, response: web.StreamResponse) -> None:
        """Let the response take its compressed body from here."""
        _aiohttp.take_compressed_from(response, self._body, self._compressed)

    async def _compressed(self, response: web.Response, coding: web.ContentCoding) -> bytes:
        result = self._done.get(coding)
        if result is None:
            # In a task of its own: whoever asked first may leave.
            result = await self._reducer(_aiohttp.compressed(response, coding), ident=coding.value)
            self._done[coding] = result
        return result
