"""What followers are given: a handler's outcome as it was when the handler ended, made anew for each of them.

An outcome never changes once it is captured, and never holds what belongs to one request only.
"""

import copy
import re
from types import TracebackType
from typing import Any, Final

from aiohttp import hdrs, web
from multidict import CIMultiDict

from .. import _aiohttp
from ..async_reduce_core import AsyncReducer
from ..policy import SHARED, Verdict, judge
from ..stats import Unshared
from .identity import TRACING, Selection

# Shorter values ("1", "sampled") stand in other headers by chance.
_MIN_TRACE_ID: Final = 8
# Names of headers that may repeat such a value under another name. Not just any: whoever leads chooses the value,
# and must not take a Content-Security-Policy away from the others with it.
_TRACE_NAME: Final = re.compile(r"(?:^|-)(?:trace|span|request|correlation)(?:-|$)", re.IGNORECASE)

_STREAMED_TYPES: Final = ("text/event-stream", "multipart/x-mixed-replace")


class Outcome:
    """How a handler ended. `verdict` says who may share it; `leader` is the request whose handler ran.

    `raised` says whether followers raise what `make` gives them, rather than return it; `herd` is how many
    requests it is for, leader included; `free` that it is known to be for everybody who waited.
    """

    __slots__ = ("free", "herd", "leader", "raised", "verdict")

    def __init__(self, leader: web.Request, verdict: Verdict = SHARED, *, raised: bool = False) -> None:
        self.leader = leader
        self.verdict = verdict
        self.raised = raised
        self.herd = 1
        self.free = False

    def refuses(self, request: web.Request) -> tuple[Unshared, str | None] | None:
        """Why this follower is turned away, and the header in which it differs; None if it may share."""
        reason, vary = self.verdict
        if reason is not None:
            return reason, None
        for name in vary:
            if request.headers.getall(name, ()) != self.leader.headers.getall(name, ()):
                return Unshared.VARY, name
        return None

    def make(self) -> Any:
        """For one follower, its own of what the handler returned or raised."""
        raise NotImplementedError


class Answer(Outcome):
    """A response, returned or raised as an HTTPException.

    Made at the handler's end, it only keeps what may change afterwards; the rest is worked out when somebody
    wants it (m: a lone request whose handler takes over a millisecond pays 2 us here instead of 9).
    """

    __slots__ = (
        "_args",
        "_cls",
        "_compression",
        "_containers",
        "_fields",
        "_headers",
        "_settled",
        "_state",
        "cache_status",
        "has_key",
        "selection",
    )

    def __init__(
        self,
        leader: web.Request,
        response: web.StreamResponse,
        *,
        raised: bool,
        selection: Selection,
        has_key: bool,
        cache_status: str | None,
    ) -> None:
        super().__init__(leader, raised=raised)
        self.selection = selection
        self.has_key = has_key
        self.cache_status = cache_status
        self._settled = False
        self._cls = type(response)
        self._args = response.args if isinstance(response, web.HTTPException) else None
        self._fields = vars(response).copy()
        self._containers: tuple[str, ...] = ()
        if self._cls is not web.Response:
            self._fields = _aiohttp.fields_of_any_sending(self._fields)
            self._containers = _aiohttp.containers_in(self._fields)
        self._state = _aiohttp.response_state(response)
        self._headers = response.headers.copy()
        if isinstance(response, web.Response):
            self._fields["_body"] = _aiohttp.repeatable_body(response.body)[1]
        self._compression: SharedCompression | None = None
        if response.compression and _aiohttp.compresses_whole_body(response):
            self._compression = SharedCompression(self._fields["_body"])
            self._compression.attach(response)

    def refuses(self, request: web.Request) -> tuple[Unshared, str | None] | None:
        if not self._settled:
            self._settle()
        return super().refuses(request)

    def make(self) -> web.StreamResponse:
        response = _aiohttp.rebuild(self._cls, self._fields, self._containers, self._headers, self._state)
        if self._compression is not None:
            self._compression.attach(response)
        if self._args is not None:
            assert isinstance(response, web.HTTPException)
            response.args = self._args
        return response

    def _settle(self) -> None:
        self._settled = True
        self.verdict = Verdict(Unshared.RESPONSE_CLASS)  # should anything fail here
        content_type = self._headers.get(hdrs.CONTENT_TYPE, "").split(";", 1)[0].strip().lower()
        if content_type in _STREAMED_TYPES:
            self.verdict = Verdict(Unshared.STREAM)
            return
        self.verdict = judge(
            self._headers,
            has_credentials=self.has_key or self.selection.has_credentials(self.leader),
            in_identity=self.selection.holds_all_of,
        )
        self._fields = _aiohttp.fields_of_any_sending(self._fields)
        self.free = self.verdict == SHARED
        _remove_trace(self._headers, self.leader)
        if self.cache_status is not None:
            self._headers.add("Cache-Status", f"{self.cache_status}; fwd=miss; collapsed")


class Failure(Outcome):
    """An exception that is no HTTPException; each follower raises a copy, where copying works."""

    __slots__ = ("_exception", "_traceback")

    def __init__(self, leader: web.Request, exception: BaseException) -> None:
        super().__init__(leader, raised=True)
        self.free = True
        self._exception = exception
        self._traceback: TracebackType | None = exception.__traceback__

    def make(self) -> BaseException:
        # With the handler's traceback; what a raise adds goes on top of it, in the copy alone.
        return copied(self._exception).with_traceback(self._traceback)


class Returned(Outcome):
    """A value that is no response: aiohttp answers 500 for it, and so it does for each follower."""

    __slots__ = ("_value",)

    def __init__(self, leader: web.Request, value: Any) -> None:
        super().__init__(leader)
        self._value = value

    def make(self) -> Any:
        return self._value


def captured(
    leader: web.Request,
    response: Any,
    *,
    raised: bool,
    selection: Selection,
    has_key: bool,
    cache_status: str | None,
) -> Outcome:
    """The outcome of a handler that returned `response`, or raised it as an HTTPException."""
    if not isinstance(response, web.StreamResponse):
        return Returned(leader, response)
    reason = _cannot_be_replayed(response)
    if reason is not None:
        return Outcome(leader, Verdict(reason))
    return Answer(leader, response, raised=raised, selection=selection, has_key=has_key, cache_status=cache_status)


def _cannot_be_replayed(response: web.StreamResponse) -> Unshared | None:
    if response.prepared or isinstance(response, web.WebSocketResponse):
        return Unshared.STREAM
    if _aiohttp.sends_its_body_itself(response):
        return Unshared.RESPONSE_CLASS
    if isinstance(response, web.Response) and not _aiohttp.repeatable_body(response.body)[0]:
        return Unshared.ONE_SHOT_BODY
    if _aiohttp.sets_cookies(response):
        return Unshared.SET_COOKIE
    return None


def _remove_trace(headers: CIMultiDict[str], leader: web.Request) -> None:
    """Take out what repeats the headers that name the leader's request in a trace."""
    names = {name.lower(): value for name, value in leader.headers.items() if name in TRACING}
    if names:
        values = {value for value in names.values() if len(value) >= _MIN_TRACE_ID}
        for name in list(headers.keys()):
            repeats = _TRACE_NAME.search(name) and values.intersection(headers.getall(name, ()))
            if name.lower() in names or repeats:
                headers.popall(name, None)


def copied(exception: BaseException) -> BaseException:
    """A copy of the exception without its notes and context, or the exception itself where copying fails."""
    try:
        twin = copy.copy(exception)
        faithful = type(twin) is type(exception) and twin.args == exception.args and str(twin) == str(exception)
    except Exception:
        return exception
    if twin is exception or not faithful:
        return exception
    twin.__dict__.pop("__notes__", None)
    for name, value in twin.__dict__.items():
        twin.__dict__[name] = _aiohttp.own(value)
    twin.__cause__ = exception.__cause__
    twin.__suppress_context__ = exception.__suppress_context__
    return twin


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


def mark_not_collapsed(response: Any, cache_status: str | None) -> None:
    """Say in an answer that its request had waited and then ran by itself (RFC 9211, 2.5)."""
    if cache_status is not None and isinstance(response, web.StreamResponse) and not response.prepared:
        response.headers.add("Cache-Status", f"{cache_status}; fwd=miss; collapsed=?0")
