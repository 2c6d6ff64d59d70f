"""Limits on connections and requests, so that slow or large ones do not hinder other users of the page.

uvicorn has no limit on the time until a request is complete, and none on its size.
"""

import asyncio
import typing

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 20.0  # until the headers of a request are complete, and again until its body is
MOST_BODY_BYTES = 12_000_000  # the largest request has a painted mask: requests.MAX_MASK_BYTES


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, which closes a connection whose next request is not complete in time."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Start the time of the first request."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._close_if_waiting)

    def data_received(self, data: bytes) -> None:
        """Start the time of a later request when its first bytes arrive."""
        if self._timer is None and self._is_waiting():
            self._timer = self.loop.call_later(REQUEST_SECONDS, self._close_if_waiting)
        super().data_received(data)
        if not self._is_waiting():
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time."""
        self._stop_timer()
        super().connection_lost(exc)

    def _is_waiting(self) -> bool:
        cycle: typing.Any = self.cycle  # None before the first request
        return cycle is None or cycle.response_complete

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_if_waiting(self) -> None:
        self._timer = None
        is_own = self.transport.get_protocol() is self  # not after an upgrade to a websocket
        if is_own and self._is_waiting() and not self.transport.is_closing():
            self.transport.close()


class LimitedBody:
    """An application that refuses requests with a large body (413), or with one that does not arrive in time (408)."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the whole body, then pass on the request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                body = await _body(receive)
        except TimeoutError:
            await PlainTextResponse("The request did not arrive in time\n", 408)(scope, receive, send)
            return
        except _TooLargeError:
            await PlainTextResponse(
                f"The request has more than {MOST_BODY_BYTES:,} bytes\n", 413, {"connection": "close"}
            )(scope, receive, send)
            return
        except _DisconnectedError:
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def received() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, received, send)


class _TooLargeError(Exception):
    pass


class _DisconnectedError(Exception):
    pass


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise _DisconnectedError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > MOST_BODY_BYTES:
            raise _TooLargeError
    return b"".join(parts)
