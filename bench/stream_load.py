"""Readers of streams: plain sockets and epoll, in the process that calls, so that it is the server which is measured.

Readers that check what they read take a digest of all of it (CRC-32: what hashes more slowly is slower than the
server); the others leave the bytes to the kernel and count them.
"""

import math
import selectors
import socket
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs, urlsplit

from .processes import Server
from .stream_app import piece_of, whole

_WITHIN: Final = 60.0
_BUFFER: Final = 256 * 1024  # what fits into a core's own cache
_MUCH: Final = 16 * 2**20
_SMALL: Final = 4096
_LOOK_EVERY: Final = 0.02
_clock = time.perf_counter


class WrongStreamError(Exception):
    """A reader did not get what it should have."""


@dataclass(frozen=True)
class Expected:
    """What comes over the wire after the head: how many bytes, and their digest."""

    size: int
    digest: int


@cache
def expected(target: str) -> Expected:
    """The answer of `bench.stream_app` to this target."""
    split = urlsplit(target)
    asked = {name: int(values[0]) for name, values in parse_qs(split.query).items() if name in ("size", "piece")}
    if split.path == "/whole":
        return Expected(asked["size"], zlib.crc32(whole(asked["size"])))
    digest, size = 0, asked["piece"]
    count = asked["size"] // size
    for number in range(count):
        digest = zlib.crc32(piece_of(number, size), digest)
    return Expected(size * count, digest)


class Reader:
    """One connection, which asks for one target `after` so many seconds.

    `trickles`: it takes a byte a second, and has the smallest of receive buffers. Nobody waits for it. `began` and
    `ended` are the times at which it got the first byte of the body, and the last one.
    """

    def __init__(self, target: str, *, after: float = 0.0, checks: bool = False, trickles: bool = False) -> None:
        self.target = target
        self.after = after
        self.trickles = trickles
        self.expected = expected(target)
        self.began = 0.0
        self.ended = 0.0
        self.received = 0
        self.socket = socket.socket()
        self._digest = 0 if checks else None
        self._head: bytes | None = b""

    def connect(self, port: int) -> None:
        if self.trickles:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)

    def ask(self) -> None:
        self.socket.send(f"GET {self.target} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode())

    def read(self, buffer: memoryview) -> bool:
        """Take what is there; whether that was the end. Raises WrongStreamError."""
        if self._head is not None:
            got = self.socket.recv_into(buffer, _SMALL)
            self._check_open(got)
            head, ended, body = (self._head + bytes(buffer[:got])).partition(b"\r\n\r\n")
            if not ended:
                self._head = head
                return False
            if not head.startswith(b"HTTP/1.1 200 "):
                raise WrongStreamError(f"{self.target} was answered {head!r}")
            self._head = None
            if not body and self.expected.size:
                return False
            buffer[: len(body)] = body
            got = len(body)
        elif self._digest is None:
            got = self.socket.recv_into(buffer, _MUCH, socket.MSG_TRUNC)  # copies nothing
        else:
            got = self.socket.recv_into(buffer, _BUFFER)
        if self.expected.size:
            self._check_open(got)
        if not self.received:
            self.began = _clock()
        self.received += got
        if self._digest is not None:
            self._digest = zlib.crc32(buffer[:got], self._digest)
        if self.received < self.expected.size:
            return False
        self.ended = _clock()
        self._check_whole()
        return True

    def trickle(self) -> None:
        """Take one byte, if there is one."""
        try:
            self.socket.recv(1)
        except (BlockingIOError, ConnectionError):
            pass

    def _check_open(self, got: int) -> None:
        if not got:
            raise WrongStreamError(f"closed after {self.received:,} of {self.expected.size:,} bytes of {self.target}")

    def _check_whole(self) -> None:
        if self.received > self.expected.size:
            raise WrongStreamError(f"{self.received:,} bytes of {self.target} instead of {self.expected.size:,}")
        if self._digest is not None and self._digest != self.expected.digest:
            raise WrongStreamError(f"other bytes of {self.target} than were sent")


class Load:
    """Readers of one server, connected; a context manager."""

    def __init__(self, server: Server, readers: Sequence[Reader]) -> None:
        self.readers = readers
        self._server = server
        self._selector = selectors.DefaultSelector()
        try:
            for reader in readers:
                reader.connect(server.port)
                if not reader.trickles:
                    self._selector.register(reader.socket, selectors.EVENT_READ, reader)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._selector.close()
        for reader in self.readers:
            reader.socket.close()

    def run(self, look: Callable[[], None] | None = None) -> float:
        """Read until all have everything: the seconds from the first byte of a body to the last of all.

        `look` is called now and then. Raises WrongStreamError, TimeoutError, and what `look` raises.
        """
        buffer = memoryview(bytearray(_MUCH))
        to_ask = sorted(self.readers, key=lambda reader: reader.after, reverse=True)
        trickling = [reader for reader in self.readers if reader.trickles]
        awaited = [reader for reader in self.readers if not reader.trickles]
        left = len(awaited)
        start = _clock()
        next_byte = start + 1.0
        next_look = start if look is not None else math.inf
        while left:
            now = _clock()
            if now > start + _WITHIN:
                raise TimeoutError(f"{self._server.name}: {left} of {len(awaited)} readers were not served in time")
            while to_ask and start + to_ask[-1].after <= now:
                to_ask.pop().ask()
            if now >= next_byte:
                next_byte += 1.0
                for reader in trickling:
                    reader.trickle()
            if look is not None and now >= next_look:
                next_look = now + _LOOK_EVERY
                look()
            until = start + to_ask[-1].after if to_ask else next_byte
            for key, _ in self._selector.select(max(0.0, min(until, next_byte) - now)):
                try:
                    has_all = key.data.read(buffer)
                except ConnectionError as error:
                    raise WrongStreamError(f"{key.data.target}: {error}") from error
                if has_all:
                    self._selector.unregister(key.fileobj)
                    left -= 1
        return max(reader.ended for reader in awaited) - min(reader.began for reader in awaited)
