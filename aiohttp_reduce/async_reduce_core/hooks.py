"""Hooks: objects that are told what a reducer does. A hook that raises is logged and disturbs nothing."""

import asyncio
import logging
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, TextIO

from .identity import NamedIdent, location

logger = logging.getLogger(__name__)

# So many names are counted one by one, then there is one for all others: outgoing requests may go to any host.
MAX_NAMES: Final = 1_000
OTHER: Final = "(other)"


class BaseHooks:
    """The five calls, each doing nothing; subclass and override what you need.

    `coro` is the coroutine of the call; on the HTTP sides its request, `web.Request` or `aiohttp.ClientRequest`.
    `ident` is the identity: the explicit one as given, or a `str` such as
    `package.module:function(<state_hash:N>)`; on the HTTP sides `GET http://example.org/path?query`.

    For each call there is `on_apply_for`, then one of `on_executing_for` and `on_reducing_for`; for each execution, at
    its end, one of `on_result_for` and `on_exception_for`, with the `coro` that executed. (On the HTTP sides, who has
    waited and then runs by itself after all is executing too.) They are plain functions, called in the event loop, so
    they should be quick. One that raises is logged, and the call goes on.

    Example::

        import logging
        from aiohttp_reduce.hooks import BaseHooks

        class LogFailures(BaseHooks):
            def on_exception_for(self, coro, ident, exception):
                logging.warning("%s: %r", ident, exception)
    """

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        """Every call, first of all."""

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        """This call executes."""

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        """This call joins a flight; its coroutine will not run."""

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        """The execution returned; called once for a flight."""

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        """The execution raised; called once for a flight."""

    def __and__(self, other: "BaseHooks") -> "MultipleHooks":
        """Both hooks, one after the other: `DebugHooks() & StatisticsOverallHooks()`."""
        if not isinstance(other, BaseHooks):
            return NotImplemented
        mine = self.hooks_list if isinstance(self, MultipleHooks) else [self]
        others = other.hooks_list if isinstance(other, MultipleHooks) else [other]
        return MultipleHooks(*mine, *others)


_CALLS = ("on_apply_for", "on_executing_for", "on_reducing_for", "on_result_for", "on_exception_for")


def check_hooks(hooks: object, argument: str) -> None:
    """Raise TypeError unless `hooks` is None or has the five methods of `BaseHooks`."""
    if hooks is None:
        return
    missing = [name for name in _CALLS if not callable(getattr(hooks, name, None))]
    if isinstance(hooks, type) or missing:
        what = f"the class {hooks.__name__} itself" if isinstance(hooks, type) else repr(hooks)
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise TypeError(f"{argument} takes an instance of BaseHooks or None, got {what}{lacks}")


def guarded(hook: Callable[..., None], *args: Any) -> None:
    """Call a hook; an exception in it is logged, and the call goes on."""
    try:
        hook(*args)
    except (Exception, asyncio.CancelledError):  # a hook that asks a cancelled future for its result
        logger.exception("hook %r raised; the call goes on without it", hook)


class MultipleHooks(BaseHooks):
    """Several hooks as one, called in order; made by `a & b`. One that raises is logged, the others are called.

    `hooks_list` is the list of them, and `len()` their number. Raises TypeError for what are no hooks.
    """

    def __init__(self, *hooks: BaseHooks) -> None:
        for hook in hooks:
            check_hooks(hook, "MultipleHooks(...)")
        self.hooks_list: list[BaseHooks] = list(hooks)

    def __len__(self) -> int:
        return len(self.hooks_list)

    def __bool__(self) -> bool:
        return True

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        for hook in self.hooks_list:
            guarded(hook.on_apply_for, coro, ident)

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        for hook in self.hooks_list:
            guarded(hook.on_executing_for, coro, ident)

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        for hook in self.hooks_list:
            guarded(hook.on_reducing_for, coro, ident)

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        for hook in self.hooks_list:
            guarded(hook.on_result_for, coro, ident, result)

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        for hook in self.hooks_list:
            guarded(hook.on_exception_for, coro, ident, exception)


class DebugHooks(BaseHooks):
    """Prints a line for each of the five calls, such as `[IDENT] reducing for CORO`.

    - `stream`: a text file that is open for writing. Default: `sys.stderr` as it is at that moment.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def _print(self, ident: Any, text: str) -> None:
        print(f"[{ident}] {text}", file=sys.stderr if self._stream is None else self._stream)

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self._print(ident, f"apply async_reduce() for {coro}")

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        self._print(ident, f"executing for {coro}")

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self._print(ident, f"reducing for {coro}")

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self._print(ident, f"result for {coro}: {result}")

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self._print(ident, f"get exception for {coro}: {exception}")


class StatisticsOverallHooks(BaseHooks):
    """Four counts: `total` calls, `executed` results, `reduced` calls that joined, `errors` raised.

    `str()` gives `Stats(total=4, executed=2, reduced=1, errors=1)`.
    """

    def __init__(self) -> None:
        self.total = 0
        self.executed = 0
        self.reduced = 0
        self.errors = 0

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self.total += 1

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self.reduced += 1

    def on_result_for(self, coro: Any, ident: Any, result: Any) -> None:
        self.executed += 1

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self.errors += 1

    def __str__(self) -> str:
        return f"Stats(total={self.total}, executed={self.executed}, reduced={self.reduced}, errors={self.errors})"


class StatisticsDetailHooks(BaseHooks):
    """The four counts by name, each a `collections.Counter`: `total`, `executed`, `reduced`, `errors`.

    The name is `module:qualname` of the function; on the server the route's pattern (`/users/{id}`), on the client
    method and host (`GET example.org`). Here `executed` counts executions that were started. Of each count there are
    1,000 names, then `(other)`.

    `str()` gives a heading for each count and, below it, its names and numbers, the highest first.
    """

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.executed: Counter[str] = Counter()
        self.reduced: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    @staticmethod
    def _count(counts: Counter[str], coro: Any, ident: Any) -> None:
        if isinstance(ident, NamedIdent):
            name = ident.name
        else:
            name = location(coro) if isinstance(coro, Coroutine) else str(ident)
        if name not in counts and len(counts) >= MAX_NAMES:
            name = OTHER
        counts[name] += 1

    def on_apply_for(self, coro: Any, ident: Any) -> None:
        self._count(self.total, coro, ident)

    def on_executing_for(self, coro: Any, ident: Any) -> None:
        self._count(self.executed, coro, ident)

    def on_reducing_for(self, coro: Any, ident: Any) -> None:
        self._count(self.reduced, coro, ident)

    def on_exception_for(self, coro: Any, ident: Any, exception: BaseException) -> None:
        self._count(self.errors, coro, ident)

    def __str__(self) -> str:
        lines: list[str] = []
        for title in ("total", "executed", "reduced", "errors"):
            lines.append(f"Top {title}:\n")
            lines += [f"\t{name}: {count}\n" for name, count in getattr(self, title).most_common()]
        return "".join(lines)
