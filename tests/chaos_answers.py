"""What the clients of `tests.chaos` ask, and what an answer must be.

A target is `/kind/number`. Its body is a function of both, so that whoever is given an answer can tell whether it is
the whole of the right one.
"""

import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

# Bytes, by the last digit of a number: a line, some segments, and more than sockets and buffers hold.
SIZES: Final = (20, 300, 5_000, 5_000, 30_000, 30_000, 70_000, 70_000, 200_000, 600_000)
# The header that tells requests apart: one for tracing, so that it is not in the identity.
REQUEST_ID: Final = "X-Request-ID"

# An empty value of a cookie, as Python writes it.
EMPTY: Final = '""'
# What is wrong with a body of which only the end of its connection said that it was the whole.
PART: Final = "a part that looks whole"
# Kinds whose answers may break off, or not come at all; and those whose bodies are streamed.
MAY_BREAK: Final = {"broken", "broken_generator", "broken_sized", "short", "cancels", "cancels_itself", "odd"}
MAY_BREAK.update({"late_stream", "gateway_stream"})
STREAMS: Final = {"stream", "sized", "generator", "compressed_stream", "gateway_stream", "late_stream"}
STREAMS.update({"broken", "broken_generator", "broken_sized", "short"})


@lru_cache(maxsize=64)
def body_of(kind: str, number: int) -> bytes:
    """The body of a target."""
    line = f"{kind} {number} {zlib.crc32(f'{kind}{number}'.encode()):08x} ".encode() * 8
    size = SIZES[number % 10]
    return b"".join([b"%s%06d\n" % (line, index) for index in range(size // len(line) + 1)])[:size]


@dataclass
class Ask:
    """One request: all that its answer depends on."""

    method: str
    kind: str
    number: int
    ident: str
    version: str
    headers: dict[str, str]
    body: bytes = b""
    # What the answer may not be older than: the stock that a client was told before it asked.
    floor: int = 0

    def encoded(self) -> bytes:
        """The request as it goes over the wire."""
        lines = [f"{self.method} /{self.kind}/{self.number} {self.version}"]
        if self.ident:
            lines.append(f"{REQUEST_ID}: {self.ident}")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.method == "POST" and "Transfer-Encoding" in self.headers:
            half = len(self.body) // 2
            pieces = [piece for piece in (self.body[:half], self.body[half:]) if piece]
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            return ("\r\n".join(lines) + "\r\n\r\n").encode() + chunks
        if self.method == "POST":
            lines.append(f"Content-Length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + self.body


@dataclass
class Answer:
    """One answer that came to its end, as its framing has it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cookies: list[str]
    # Whether only the end of the connection says where it ends.
    ends_with_connection: bool


def what_is_wrong(ask: Ask, answer: Answer, *, closing: bool) -> str | None:
    """What an answer that looks whole has that it should not have, if anything; `closing`: the server shuts down."""
    name, body = ask.kind, answer.body
    if answer.headers.get("X-For", ask.ident) != ask.ident:
        return "for another request"
    if "X-For" not in answer.headers and answer.status < 400:
        return "no signal was sent"
    if answer.cookies and (name != "own" or not answer.cookies[0].startswith(f"ident={ask.ident or EMPTY};")):
        return "a cookie for another one"
    coding = answer.headers.get("Content-Encoding")
    if ask.method == "HEAD":
        pass
    elif coding in {"gzip", "deflate"}:
        try:
            body = gzip.decompress(body) if coding == "gzip" else zlib.decompress(body)
        except (EOFError, zlib.error):
            # Its client can tell.
            return PART if answer.ends_with_connection else "a broken coding"
    elif coding is not None:
        return "a coding that nobody asked for"
    if ask.method == "POST" and answer.status == 200:
        return None if body.partition(b"\n")[2] == ask.body else "another answer to what was written"
    allowed = {
        "raises": {500},
        "nothing": {500},
        "refuses": {404},
        "limited": {200, 504},
        "late_stream": {200, 504},
        "gateway": {200, 502},
        "gateway_stream": {200, 500, 504},
        "odd": {200},
        "file": {200, 206, 304, 416},
        "ranged": {200, 206, 304},
    }.get(name, {200})
    if closing and answer.status == 503:
        return None  # whoever waits for another's run then
    if answer.status not in allowed:
        return f"status {answer.status}"
    if answer.status >= 416 or answer.status == 304 or ask.method == "HEAD":
        return "a body where there is none" if body and ask.method == "HEAD" else None
    expected = body_of(name, ask.number)
    if name == "stock":
        found, _, body = body.partition(b"\n")
        if int(found) < ask.floor:
            return f"stock {int(found)} is older than {ask.floor}"
    if name == "varies":
        agent, _, body = body.partition(b"\n")
        if agent.decode() != ask.headers.get("User-Agent", ""):
            return "the answer to another user agent"
    if answer.status == 206:
        first, _, last = answer.headers["Content-Range"].removeprefix("bytes ").partition("/")[0].partition("-")
        expected = expected[int(first) : int(last) + 1]
    if body == expected:
        return None
    if answer.ends_with_connection and expected.startswith(body):
        return PART
    return f"another body: {len(body)} bytes, not {len(expected)}"
