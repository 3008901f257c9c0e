"""Holding: in a block, whoever leads a flight waits before its run begins, so that others can join."""

import asyncio
import math
from asyncio import CancelledError
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Final, Self

from .. import arguments
from ..async_reduce_core import AsyncReducer
from .counts import Counts
from .finding import Target, find
from .held import Held
from .runs import Run
from .watching import Watch, watch

_MAX_SHOWN: Final = 5
# What an `aiohttp.ClientSession` opens at most, unless its connector says otherwise.
_CONNECTIONS: Final = 100

# Of all threads: whoever goes through them takes a copy.
_open: "set[Hold]" = set()


class HoldError(AssertionError):
    """What a test expected of a hold did not happen; the message says what did."""


def holding(target: Target, *, only: Hashable | Callable[[Any], bool] | None = None, timeout: float = 5.0) -> "Hold":
    """Hold whoever leads a flight, before its run begins, to the block's end: `async with holding(app) as held: ...`.

    - `target`: what reduces; an application stands for the `reduce_middleware()` in it.
    - `only`: which calls are held, all by default. A path such as `"/report"`; for an `AsyncReducer` an `ident`, or the
      qualified name of the coroutine function where there is none; or a function of the request (`web.Request`,
      `aiohttp.ClientRequest`) or coroutine that returns a bool.
    - `timeout`: seconds in which what is waited for has to happen, and the block to go on after it; `math.inf` under
      a debugger.

    Raises TypeError or ValueError for a wrong argument. The block raises `HoldError` where nobody releases in time.
    """
    return Hold(target, only, arguments.seconds("timeout", timeout))


class Hold:
    """A hold, made by `holding()`. It is for one block, and holds what runs in the event loop of that.

    `counts` are what the target did since the block began; they go on after its end.
    """

    counts: Counts

    def __init__(self, target: Target, only: Any, timeout: float) -> None:
        self._target = find(target)
        if only is not None and not callable(only) and not isinstance(self._target, AsyncReducer):
            arguments.path("only", only)
        self._timeout = timeout
        self._held = Held(only)
        self._watch: AbstractContextManager[Watch] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wrong: str | None = None

    @property
    def leaders(self) -> int:
        """Runs that are held now."""
        return len(self._held.runs)

    @property
    def followers(self) -> int:
        """Calls that wait now for a run that is held."""
        return len({future for run in self._held.runs for future in run.followers()})

    async def joined(self, followers: int) -> None:
        """Wait until so many wait for the runs that are held. Raises `HoldError` after `timeout` seconds."""
        __tracebackhide__ = True
        await self._until(lambda: self.followers >= followers, _some(followers, "follower"))

    async def led(self, leaders: int) -> None:
        """Wait until so many runs are held. Raises `HoldError` after `timeout` seconds."""
        __tracebackhide__ = True
        await self._until(lambda: self.leaders >= leaders, _some(leaders, "leader"))

    async def arrived(self, calls: int) -> None:
        """Wait until so many calls came since the block began, and each has gone its way: leads, waits, or neither.

        Raises `HoldError` after `timeout` seconds.
        """
        __tracebackhide__ = True
        await self._until(lambda: self._held.arrived >= calls, _some(calls, "call"), held=False)

    def release(self) -> None:
        """Let go of all that is held. What comes later is not held any more."""
        self._stop_timer()
        self._held.release()

    async def __aenter__(self) -> Self:
        if self._watch is not None:
            raise RuntimeError("a hold is for one block; call holding() for another one")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a hold is for a block in a task")
        self._held.loop = asyncio.get_running_loop()
        self._task = task
        self._cancelling = task.cancelling()
        self._watch = watch(self._target, self._held)
        self.counts = Counts(self._watch.__enter__().figures)
        _open.add(self)
        self._start_timer()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        assert self._watch is not None
        assert self._task is not None
        _open.discard(self)
        self._watch.__exit__(None, None, None)
        if not self._held.loop.is_closed():  # nobody in a closed one could go on
            self.release()
        if self._wrong is not None:
            is_ours = self._task.uncancel() <= self._cancelling
            # (A KeyboardInterrupt, or what pytest skips and exits by, ends more than the block.)
            if exc_val is None or isinstance(exc_val, Exception) or (is_ours and isinstance(exc_val, CancelledError)):
                raise HoldError(self._wrong) from exc_val
        elif self._held.error is not None and exc_val is None:
            raise HoldError("only=... raised; what it raised it for was not held") from self._held.error

    async def _until(self, happened: Callable[[], bool], expected: str, *, held: bool = True) -> None:
        """Wait until it has happened. What can only be while runs are `held` is not waited for after the release."""
        __tracebackhide__ = True
        if self not in _open:
            raise RuntimeError("this is for the block of a hold: async with holding(...) as held: ...")

        def is_over() -> bool:
            return self._held.error is not None or happened() or (held and self._held.is_released)

        # While one of them waits for something, the block of no other one is late, either.
        blocks = [hold for hold in list(_open) if hold._task is self._task]
        for hold in blocks:
            hold._stop_timer()
        try:
            async with asyncio.timeout(None if self._timeout == math.inf else self._timeout):
                while True:
                    while not is_over():
                        await self._held.change()
                    # Whoever came in this pass of the loop begins to wait, so that all go on in the order they came.
                    await asyncio.sleep(0)
                    if is_over():
                        break
        except TimeoutError:
            pass
        finally:
            for hold in blocks:
                hold._start_timer()
        if self._held.error is not None:
            raise HoldError("only=... raised; what it raised it for was not held") from self._held.error
        if not happened():
            when = "before the release" if held and self._held.is_released else f"within {self._timeout:g} s"
            raise HoldError(f"expected {expected} {when}; {self._happened()}")

    def _start_timer(self) -> None:
        self._stop_timer()
        loop = self._held.loop
        if self in _open and not self._held.is_released and self._timeout != math.inf and not loop.is_closed():
            self._timer = loop.call_later(self._timeout, self._is_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_late(self) -> None:
        assert self._task is not None
        self._wrong = (
            f"the block was not left, nor held.release() called, within {self._timeout:g} s; {self._happened()}. Start "
            "what is to be held with asyncio.create_task(...), and await it after the block"
        )
        self._held.release()
        self._task.cancel()

    def _happened(self) -> str:
        """What did happen since the block began."""
        counts = self.counts
        held = self._held
        if not (held.arrived or held.not_selected):
            return (
                f"nothing came to {self._target!r} in this event loop (is it the one that is asked, and are the calls "
                "tasks?)"
            )
        followers, leaders = self.followers, self.leaders
        told = [f"{followers or 'none'} joined"]
        if bypassed := counts.bypassed:
            told.append(f"{_were(bypassed)} bypassed ({_reasons(bypassed)})")
        if unshared := counts.unshared:
            told.append(f"{_were(unshared)} not shared ({_reasons(unshared)})")
        if counts.reduced:
            told.append(f"{counts.reduced} answered by another's run")
        if counts.errors:
            told.append(f"{_some(counts.errors, 'run')} failed")
        if (others := counts.in_flight - leaders) > 0:
            told.append(f"{_some(others, 'run')} not held")
        if (waiting := counts.waiting - followers) > 0:
            told.append(f"{waiting} waiting for them")
        if others := sum(self._held.not_selected.values()):
            names = ", ".join([str(name) for name in list(self._held.not_selected)[:_MAX_SHOWN]])
            told.append(f"{_some(others, 'call')} not selected by only={self._held.only!r} ({names})")
        if leaders:
            told.append(f"{'1 is' if leaders == 1 else f'{leaders} are'} held: {self._leaders()}")
        text = ", ".join(told)
        if self._held.arrived == _CONNECTIONS:
            text += f" (a ClientSession opens {_CONNECTIONS} connections at most, unless its connector has limit=0)"
        return text

    def _leaders(self) -> str:
        """The runs that are held, and in what they differ."""
        shown: dict[str, list[str]] = {}
        first: dict[str, Run] = {}
        for run in self._held.runs:
            reasons = shown.setdefault(run.label, [])
            if run.label in first:
                names = run.differs_from(first[run.label])
                reasons.append(f"they differ in {', '.join(names)}" if names else "the first takes no more followers")
            first.setdefault(run.label, run)
        texts = []
        for label, reasons in shown.items():
            why = f" ({len(reasons) + 1} of them: {'; '.join(dict.fromkeys(reasons))})" if reasons else ""
            texts.append(label + why)
        rest = [f"and {len(texts) - _MAX_SHOWN} others"] if len(texts) > _MAX_SHOWN else []
        return ", ".join([*texts[:_MAX_SHOWN], *rest])


def _some(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _were(reasons: dict[str, int]) -> str:
    number = sum(reasons.values())
    return f"{number} {'was' if number == 1 else 'were'}"


def _reasons(reasons: dict[str, int]) -> str:
    if len(reasons) == 1:
        return next(iter(reasons))
    return ", ".join([f"{reason}: {count}" for reason, count in reasons.items()])
