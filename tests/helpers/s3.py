"""A real S3 server on this machine (moto), whose requests are recorded and can be made to fail."""

import collections
import dataclasses
import http.client
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest
import tensorstore as ts

from revelio_jax.store import layout, object_storage

BUCKET = "bucket"
FAST = {"max_retries": 4, "initial_delay": "10ms", "max_delay": "20ms"}


@dataclasses.dataclass(frozen=True)
class Request:
    """A request: ``key`` is empty for a listing, ``range`` is the header or empty."""

    method: str
    key: str
    range: str


class Server:
    """A WSGI application around the one of moto.

    ``fault(request)`` returns "503", "cut" (the connection ends in the middle of the answer), a number of seconds to
    wait, or None. ``requests`` are all requests since it was cleared.
    """

    def __init__(self, application: Callable):
        self._application = application
        self.requests: list[Request] = []
        self.fault: Callable[[Request], str | float | None] = lambda request: None

    def __call__(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
        request = Request(environ["REQUEST_METHOD"], key, environ.get("HTTP_RANGE", ""))
        self.requests.append(request)
        fault = self.fault(request)
        if fault == "503":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]
        if isinstance(fault, float):
            time.sleep(fault)
        body = b"".join(self._application(environ, start_response))
        return [body[: len(body) // 2] if fault == "cut" else body]

    def counts(self) -> dict[str, int]:
        """Return the number of requests per method, and of listings as LIST."""
        return dict(collections.Counter(each.method if each.key else "LIST" for each in self.requests))


def once_each(fault: str | float, seen: set | None = None) -> Callable[[Request], str | float | None]:
    """Return a rule that injects ``fault`` into the first of all equal requests."""
    seen = set() if seen is None else seen

    def rule(request: Request) -> str | float | None:
        if request in seen:
            return None
        seen.add(request)
        return fault

    return rule


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[Server, int]]:
    """The server and its port."""
    pytest.importorskip("moto", reason="moto, a server of S3, is not installed")
    pytest.importorskip("flask_cors", reason="flask-cors, which the server of moto needs, is not installed")
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        def log_request(self, *args) -> None:
            pass

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a cut connection is logged as an error
    server = Server(DomainDispatcherApplication(create_backend_app))
    listener = make_server("127.0.0.1", 0, server, threaded=True, request_handler=Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", listener.server_port)
    connection.request("PUT", f"/{BUCKET}")
    assert connection.getresponse().status == 200
    connection.close()
    yield server, listener.server_port
    listener.shutdown()
    thread.join()


def use(patch: pytest.MonkeyPatch, port: int) -> None:
    """Let s3:// be the server at ``port``, and repeat failed requests quickly."""
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_REGION", "us-east-1")
    patch.setenv("AWS_ACCESS_KEY_ID", "key")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setattr(layout, "CONTEXT", ts.Context(object_storage.resources(FAST)))


@pytest.fixture
def s3(s3_server, monkeypatch) -> Server:
    """The server, which is s3:// in the test."""
    server, port = s3_server
    use(monkeypatch, port)
    server.fault = lambda request: None
    server.requests.clear()
    return server
