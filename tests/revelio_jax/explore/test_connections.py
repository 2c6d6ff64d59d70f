"""Requests that end early and connections that become websockets, without a server."""

import asyncio

import pytest

from tests.helpers import coroutines

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
from uvicorn import Config
from uvicorn.server import ServerState

from revelio_jax.explore import connections

POST = {"type": "http", "method": "POST", "headers": []}


class Transport(asyncio.Transport):
    """A transport that only remembers its protocol and whether it was closed."""

    closed = False

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True


def bodies(messages: list[dict]) -> list[bytes]:
    """Return the bodies with which the application runs if it receives these messages."""
    ran: list[bytes] = []

    async def application(scope, receive, send):
        ran.append((await receive())["body"])

    async def receive():
        return messages.pop(0)

    async def send(message):
        raise AssertionError(message)

    coroutines.run(connections.LimitedBody(application)(POST, receive, send))
    return ran


def test_a_request_whose_client_leaves_in_the_middle_does_not_run():
    first = {"type": "http.request", "body": b"a", "more_body": True}
    assert bodies([first, {"type": "http.request", "body": b"b"}]) == [b"ab"]
    assert bodies([first, {"type": "http.disconnect"}]) == []
    assert bodies([{"type": "http.disconnect"}]) == []


@pytest.mark.parametrize("upgraded", [False, True])
def test_only_a_connection_without_a_request_is_closed(monkeypatch, upgraded):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.01)

    async def connect() -> bool:
        config = Config(lambda: None, ws="none")
        protocol = connections.TimedProtocol(config, ServerState(), {}, asyncio.get_running_loop())
        transport = Transport()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if upgraded:
            transport.set_protocol(asyncio.Protocol())
        await asyncio.sleep(0.05)
        return transport.closed

    assert coroutines.run(connect()) != upgraded
