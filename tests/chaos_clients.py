"""The clients of `tests.chaos`: raw sockets that misbehave in every way, and look at each answer that comes whole."""

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from multidict import CIMultiDict

from tests.chaos_answers import MAY_BREAK, PART, STREAMS, Answer, Ask, what_is_wrong
from tests.chaos_app import KINDS

# Seconds within which a client that reads has its answer, or knows that it will not have it. No handler, deadline,
# slow reader or upstream takes more than 3 together; the rest is for a machine that is busy with other things.
BOUND: Final = 20.0
# Bytes that the system keeps at either end of a connection.
SOCKET_BUFFER: Final = 2**15

_LOST: Final = (ConnectionError, asyncio.IncompleteReadError)


class TooLateError(Exception):
    """The server does not listen any more."""


class NotWholeError(Exception):
    """The framing of an answer says that this is not the whole."""


@dataclass
class Figures:
    """What became of requests. `broken_by_server`: where it may be; all others that got no answer are `lost`."""

    counts: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    # What should not be: each with the request that it happened to. The first ones are enough.
    wrong: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def blame(self, what: str, why: str) -> None:
        self.counts[what] += 1
        if len(self.wrong) < 20:
            self.wrong.append(f"{what}: {why}")


@dataclass
class Place:
    """Where a server listens. `closing` says that it is being shut down."""

    tcp: Any
    unix: str
    closing: bool = False


class Clients:
    """Makes clients, with choices drawn from a seed."""

    def __init__(self, choose: random.Random, figures: Figures, place: Place) -> None:
        self.choose = choose
        self.figures = figures
        self.place = place
        self.asked = 0
        # The stock that was told to any client, by number.
        self.told: Counter[int] = Counter()

    # What is asked.

    def ask(self, kind: str, number: int, method: str = "GET", version: str = "HTTP/1.1") -> Ask:
        self.asked += 1
        headers = {"Host": "localhost"}
        if kind in {"compressed", "compressed_stream"}:
            headers["Accept-Encoding"] = self.choose.choice(("gzip", "deflate", "identity"))
        if kind == "varies":
            headers["User-Agent"] = self.choose.choice(("one", "two"))
        if kind in {"file", "ranged"} and self.choose.random() < 0.6:
            first = self.choose.choice((0, 7))
            headers.update(self.choose.choice(({"Range": f"bytes={first}-18"}, {"If-None-Match": f'"{number}"'})))
        body = b""
        if method == "POST":
            body = self.choose.choice((b"x", b"y" * 5_000, b"z" * 100_000))
            if version == "HTTP/1.1" and self.choose.random() < 0.3:
                headers["Transfer-Encoding"] = "chunked"
        if version == "HTTP/1.0" and self.choose.random() < 0.3:
            headers["Connection"] = "keep-alive"
        # Some requests are the same to the byte.
        named = kind in {"limited", "late_stream"} or self.choose.random() < 0.5
        return Ask(method, kind, number, f"{self.asked}" if named else "", version, headers, body)

    def any_ask(self, version: str = "HTTP/1.1") -> Ask:
        method = self.choose.choices(("GET", "HEAD", "POST"), (6, 1, 1))[0]
        kind = self.choose.choice([kind for kind in KINDS if kind != "short"])
        return self.ask(kind, self.choose.randrange(10), method, version)

    def herd(self) -> "list[asyncio.Task[None]]":
        """Some clients that mostly ask for the same, each in its own way."""
        choose = self.choose
        kind, number = choose.choice(list(KINDS)), choose.randrange(40)
        if kind in STREAMS and choose.random() < 0.3:
            number = 9  # more than sockets hold
        method, version = (
            choose.choices(("GET", "HEAD"), (9, 1))[0],
            choose.choices(("HTTP/1.1", "HTTP/1.0"), (6, 1))[0],
        )
        ways: Sequence[Any] = (
            self.asks_in_turn, self.pipelines, self.trickles, self.aborts_while_asking, self.aborts_while_reading,
            self.half_closes, self.reads_slowly, self.never_reads, self.sends_garbage,
        )  # fmt: skip
        tasks = []
        for _ in range(choose.choice((1, 2, 5, 12))):
            one = self.ask(kind, number, method, version)
            asks = [one, *[self.any_ask() for _ in range(choose.choice((0, 0, 1, 3)))]]
            if version == "HTTP/1.0" or kind == "short":
                asks = [one]  # what comes next would be taken for a part of the body
            if kind == "stock" and choose.random() < 0.3:
                asks.insert(0, self.ask(kind, number, "POST"))
            way = choose.choices(ways, (8, 3, 1, 1, 2, 1, 2, 1, 1))[0]
            tasks.append(asyncio.create_task(self._visit(way, asks)))
        return tasks

    async def _visit(self, way: Any, asks: list[Ask]) -> None:
        with suppress(TooLateError):
            await way(asks)

    # How it is asked.

    async def asks_in_turn(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            for ask in asks:
                ask.floor = self.told[ask.number]
                await wire.send(ask.encoded())
                if not await wire.receive(ask):
                    return

    async def pipelines(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            for ask in asks:
                ask.floor = self.told[ask.number]
            await wire.send(b"".join(ask.encoded() for ask in asks))
            for ask in asks:
                if not await wire.receive(ask):
                    return

    async def trickles(self, asks: list[Ask]) -> None:
        ask = asks[0]
        ask.floor = self.told[ask.number]
        async with Wire(self) as wire:
            data = ask.encoded()
            for at in range(min(len(data), 500)):
                await wire.send(data[at : at + 1])
                await asyncio.sleep(0)
            await wire.send(data[500:])
            await wire.receive(ask)

    async def aborts_while_asking(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            data = b"".join(ask.encoded() for ask in asks)
            await wire.send(data[: self.choose.randint(0, len(data))])
            await asyncio.sleep(self.choose.choice((0, 0, 0.001, 0.02)))
            self._left(asks[0])
            wire.abort()

    async def aborts_while_reading(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            await wire.send(b"".join(ask.encoded() for ask in asks))
            with suppress(*_LOST, TimeoutError):
                async with asyncio.timeout(1):
                    await wire.reader.readexactly(self.choose.choice((1, 100, 1_000, 20_000, 150_000)))
            self._left(asks[0])
            wire.abort()

    async def half_closes(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            await wire.send(asks[0].encoded())
            with suppress(OSError, RuntimeError):
                wire.writer.write_eof()
            await wire.receive(asks[0], gave_up=True)

    async def reads_slowly(self, asks: list[Ask]) -> None:
        ask = asks[0]
        ask.floor = self.told[ask.number]
        async with Wire(self) as wire:
            wire.pace = self.choose.choice((0.0005, 0.005, 0.05))
            await wire.send(ask.encoded())
            await wire.receive(ask)

    async def never_reads(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await wire.send(b"".join(ask.encoded() for ask in asks))
            await asyncio.sleep(self.choose.choice((0.2, 2.0)))
            self._left(asks[0])
            wire.abort()

    async def sends_garbage(self, asks: list[Ask]) -> None:
        async with Wire(self) as wire:
            await wire.send(asks[0].encoded() + self.choose.choice((b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"{" * 9_000)))
            await wire.receive(asks[0], gave_up=True)

    def _left(self, ask: Ask) -> None:
        self.figures.count("requests")
        self.figures.count("broken_by_client")


class Wire:
    """A connection of a client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._place = clients.place
        self._is_unix = clients.choose.random() < 0.2
        # Seconds to wait before each piece that is read.
        self.pace = 0.0
        self._history: list[str] = []

    async def __aenter__(self) -> "Wire":
        place = self._place
        sock = socket.socket(socket.AF_UNIX if self._is_unix else socket.AF_INET)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        try:
            await asyncio.get_running_loop().sock_connect(sock, place.unix if self._is_unix else place.tcp)
            self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=2**15)
        except OSError:
            sock.close()
            if not place.closing:
                raise
            raise TooLateError from None
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()
        with suppress(OSError):
            await self.writer.wait_closed()

    def abort(self) -> None:
        """Reset the connection."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and not self._is_unix and not self.writer.is_closing():
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Send, or not, where the server has gone: what is received tells."""
        if not self.writer.is_closing():
            with suppress(ConnectionError, RuntimeError, TimeoutError):
                self.writer.write(data)
                # A server that answers before it has read all need not be waited for.
                async with asyncio.timeout(1):
                    await self.writer.drain()

    async def receive(self, ask: Ask, *, gave_up: bool = False) -> bool:
        """Receive an answer, and count it. Whether there may be another one on this connection.

        `gave_up`: the client did what makes a server close the connection.
        """
        figures, loop = self._clients.figures, asyncio.get_running_loop()
        figures.count("requests")
        began = loop.time()
        label = f"{ask.method} /{ask.kind}/{ask.number} {ask.version} {ask.headers}{' unix' * self._is_unix}"
        self._history.append(f"{ask.method} /{ask.kind}")
        label += f" after {self._history[:-1]}"
        try:
            async with asyncio.timeout(BOUND):
                answer = await self._answer(ask)
        except TimeoutError:
            figures.blame("hung", label)
            return False
        except (*_LOST, NotWholeError, ValueError) as error:
            if gave_up:
                figures.count("broken_by_client")
            elif ask.kind in MAY_BREAK or self._place.closing:
                figures.count("broken_by_server")
            elif self.pace and ask.kind in {*STREAMS, "stock"}:
                figures.count("cut_off")
            else:
                figures.blame("lost", f"{label}: {error!r}")
            return False
        figures.longest = max(figures.longest, loop.time() - began - self.pace * len(answer.body) / 2**13)
        wrong = what_is_wrong(ask, answer, closing=self._place.closing)
        if gave_up and (answer.status == 400 or wrong == PART):
            figures.count("broken_by_client")
            return False
        if wrong == PART and self._may_look_whole(answer):
            figures.count("broken_as_without_us")
            return False
        if wrong is not None:
            status = f"{answer.status} {dict(answer.headers)}"
            figures.blame("wrong", f"{label}: {wrong}; {status}; closing {self._place.closing}")
            return False
        if answer.status == 503 and self._place.closing:
            figures.count("broken_by_server")
            return False
        figures.count("answered")
        if _is_shared(answer):
            figures.count("collapsed")
        if ask.kind == "stock" and ask.method != "HEAD":
            self._clients.told[ask.number] = max(self._clients.told[ask.number], int(answer.body.partition(b"\n")[0]))
        if ask.method == "HEAD" and ask.kind in MAY_BREAK:
            return False  # it may have broken off behind the head
        return not answer.ends_with_connection and answer.headers.get("Connection") != "close"

    def _may_look_whole(self, answer: Answer) -> bool:
        # Only a reset says that what the end of the connection ends is not whole: aiohttp sends none, and a Unix
        # socket has none.
        return self._is_unix or self._place.closing or not _is_shared(answer)

    async def _answer(self, ask: Ask) -> Answer:
        reader = self.reader
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if not head[0].startswith("HTTP/1."):
            raise NotWholeError(head[0])
        status = int(head[0].split(" ", 2)[1])
        headers: CIMultiDict[str] = CIMultiDict()
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers.add(name, value.strip())
        body, ends = b"", False
        if ask.method == "HEAD" or status in {204, 304}:
            pass
        elif headers.get("Transfer-Encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await self._exactly(size)
                if await reader.readexactly(2) != b"\r\n":
                    raise NotWholeError("a chunk does not end")
            await reader.readexactly(2)
        elif "Content-Length" in headers:
            body = await self._exactly(int(headers["Content-Length"]))
        else:
            ends = True
            while piece := await reader.read(2**13):
                body += piece
                await self._rest()
        return Answer(status, headers, body, headers.getall("Set-Cookie", []), ends)

    async def _exactly(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = await self.reader.read(min(size, 2**13))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            pieces.append(piece)
            size -= len(piece)
            await self._rest()
        return b"".join(pieces)

    async def _rest(self) -> None:
        if self.pace:
            await asyncio.sleep(self.pace)


def _is_shared(answer: Answer) -> bool:
    return answer.headers.get("Cache-Status", "").endswith("collapsed")
