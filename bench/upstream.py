"""The server that the measured client asks: `python -m bench.upstream PORT`, on uvloop.

A bare protocol, so that it is never what the client waits for:

- `GET /small...`: 100 bytes, head and body in one write;
- `GET /stream/BYTES...`: so many bytes, at the pace of the reader;
- `GET /count`: how many of the two above were asked for so far.
"""

import argparse
import asyncio
from typing import cast

import uvloop

BODY = b"x" * 100
_PIECE = b"x" * (64 * 1024)
_HIGH_WATER = 1024 * 1024


def _head(length: int) -> bytes:
    return (
        "HTTP/1.1 200 OK\r\nServer: upstream\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


_SMALL = _head(len(BODY)) + BODY


class Counted:
    """What all connections share: the number of requests."""

    requests = 0


class Connection(asyncio.Protocol):
    """A keep-alive connection, on which the client asks for one thing at a time."""

    transport: asyncio.Transport

    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._received = b""
        self._left = 0
        self._is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one without inheriting
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)

    def connection_lost(self, exception: Exception | None) -> None:
        self._left = 0

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        if not received.endswith(b"\r\n\r\n"):
            self._received = received
            return
        self._received = b""
        if received.startswith(b"GET /small"):
            self._counted.requests += 1
            self.transport.write(_SMALL)
        elif received.startswith(b"GET /stream/"):
            self._counted.requests += 1
            self._left = int(received[12 : received.index(b"?")])
            self.transport.write(_head(self._left))
            self._write_on()
        elif received.startswith(b"GET /count "):
            body = str(self._counted.requests).encode()
            self.transport.write(_head(len(body)) + body)
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._write_on()

    def _write_on(self) -> None:
        while self._left and not self._is_paused:
            piece = _PIECE[: self._left]
            self._left -= len(piece)
            self.transport.write(piece)


async def serve(port: int) -> None:
    counted = Counted()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(counted), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    uvloop.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
