"""Steady load by `wrk`, each request to another path. It runs on the core of whoever calls."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .processes import Server
from .proxies import program

_LUA = """\
local number = 0
function request()
  number = number + 1
  return "GET /constant/" .. number .. " HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
end
"""
_DONE = re.compile(r"(\d+) requests in ([\d.]+)(ms|s)")


@dataclass(frozen=True)
class Load:
    """What one run did: requests per second, and processor seconds of the server per request."""

    per_second: float
    cpu: float


class Wrk:
    """Runs of distinct GETs to `/constant/N`; `folder` is where its script is written."""

    def __init__(self, folder: str, connections: int = 64) -> None:
        self._program = program("wrk")
        self._script = Path(folder, "distinct.lua")
        self._script.write_text(_LUA)
        self._connections = connections

    def run(self, server: Server, seconds: int = 1) -> Load:
        """Load the server. Raises RuntimeError where a request failed."""
        command = [self._program, "-t1", f"-c{self._connections}", f"-d{seconds}s", "-s", str(self._script)]
        before = server.cpu()
        result = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}"],
            capture_output=True,
            text=True,
            timeout=seconds + 20,
            check=True,
        )
        used = server.cpu() - before
        done = _DONE.search(result.stdout)
        if done is None or "Non-2xx" in result.stdout or "Socket errors" in result.stdout:
            raise RuntimeError(f"wrk against {server.name}: {result.stdout}{result.stderr}")
        requests = int(done.group(1))
        lasted = float(done.group(2)) / (1000 if done.group(3) == "ms" else 1)
        return Load(requests / lasted, used / requests)
