"""Herds: many connections that ask for the same URL at once, and how long each waits for its answer.

Plain sockets and epoll rather than an HTTP client, so that the measuring takes little time between the answers.
"""

import gc
import selectors
import socket
import time
from types import TracebackType
from typing import Self

from .processes import Server

_HERD_WITHIN = 30.0


class Herd:
    """Keep-alive connections to one server; a context manager."""

    def __init__(self, server: Server, size: int = 200, *, headers: str = "") -> None:
        self.server = server
        self._head = f"Host: localhost\r\nUser-Agent: herd\r\nAccept: */*\r\n{headers}\r\n"
        self._sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        try:
            for number in range(size):
                connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
                self._sockets.append(connection)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setblocking(False)
                self._selector.register(connection, selectors.EVENT_READ, number)
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
        for connection in self._sockets:
            connection.close()

    def ask(self, target: str) -> list[float]:
        """Ask for the target on every connection at once: the seconds that each waited, from the shortest.

        Raises RuntimeError for an answer other than 200, and TimeoutError.
        """
        request = f"GET {target} HTTP/1.1\r\n{self._head}".encode()
        started = [0.0] * len(self._sockets)
        received: list[bytes] = [b""] * len(self._sockets)
        waited: list[float] = []
        clock = time.perf_counter
        enabled = gc.isenabled()
        gc.disable()
        try:
            for number, connection in enumerate(self._sockets):
                started[number] = clock()
                connection.send(request)
            end = clock() + _HERD_WITHIN
            while len(waited) < len(started):
                if clock() > end:
                    raise TimeoutError(f"{self.server.name} left {len(started) - len(waited)} requests open")
                for key, _ in self._selector.select(1.0):
                    number = key.data
                    data = self._sockets[number].recv(262_144)
                    if not data:
                        raise RuntimeError(f"{self.server.name} closed a connection after {received[number]!r}")
                    received[number] += data
                    if self._is_complete(received[number]):
                        waited.append(clock() - started[number])
        finally:
            if enabled:
                gc.enable()
        return sorted(waited)

    def cpu_of(self, target: str) -> float:
        """Processor seconds that the server spends on one such herd."""
        before = self.server.cpu()
        self.ask(target)
        return self.server.cpu() - before

    def _is_complete(self, answer: bytes) -> bool:
        head = answer.find(b"\r\n\r\n")
        if head < 0:
            return False
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"{self.server.name} answered {answer[:200]!r}")
        position = answer.find(b"\r\nContent-Length: ", 0, head)
        if position < 0:
            raise RuntimeError(f"{self.server.name} did not say how long its answer is: {answer[:head]!r}")
        length = int(answer[position + 18 : answer.find(b"\r\n", position + 18)])
        missing = head + 4 + length - len(answer)
        if missing < 0:
            raise RuntimeError(f"{self.server.name} sent more than it said")
        return missing == 0


def percentile(waited: list[float], share: float) -> float:
    """Of sorted times: the shortest one that `share` of all do not exceed."""
    return waited[max(0, -int(-len(waited) * share // 1) - 1)]
