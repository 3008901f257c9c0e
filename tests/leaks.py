"""The hunt for foreign secrets, as long as you like: `python -m tests.leaks [REQUESTS] [SEED]`.

Each of 50 users has secrets that only an exact match of the own request may return. Sends random requests to random
applications, and a fifth as many random calls through random sessions, all in memory and in virtual time; prints what
that came to, and fails if one secret was handed to somebody else, or if too few were reduced for that to say anything.
`tests/leaks_incoming.py` and `tests/leaks_outgoing.py` say what is random.
"""

import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable

from tests import leaks_incoming, leaks_outgoing
from tests.secrets_of import Findings

# In one world, which is what can be made again from one seed.
IN_ONE = 400
# The part of requests that has to be reduced, or the hunt shows nothing.
LEAST_REDUCED = 0.2


def hunt(world: Callable[[object, int], Findings], requests: int, seed: int) -> Findings:
    """So many requests, in as many worlds as it takes."""
    found = Findings()
    number = 0
    while found.requests < requests:
        name = f"{seed}.{number}"
        try:
            found.add(world(name, min(IN_ONE, requests - found.requests)))
        except RuntimeError as error:  # of the loop: somebody waits for ever
            found.hung.append(f"world {name}: {error}")
        number += 1
    return found


def incoming(requests: int, seed: int) -> Findings:
    """Requests to servers."""
    return hunt(leaks_incoming.random_world, requests, seed)


def outgoing(calls: int, seed: int) -> Findings:
    """Calls of sessions."""
    return hunt(leaks_outgoing.random_calls, calls, seed)


def main(requests: int = 100_000, seed: int = 0) -> int:
    """The exit status."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    status = 0
    for name, one, count in (("incoming", incoming, requests), ("outgoing", outgoing, requests // 5)):
        began = time.perf_counter()
        found = one(count, seed)
        gc.collect()
        sys.stdout.write(f"{name}: {found}, in {time.perf_counter() - began:.0f} s\n")
        for problem in [*found.foreign, *found.wrong, *found.hung][:20]:
            sys.stdout.write(f"  {problem}\n")
        if found.foreign or found.wrong or found.hung or found.reduced < LEAST_REDUCED * found.requests:
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
