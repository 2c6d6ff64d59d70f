"""A server of the chat/completions protocol, as a fixture. A conftest.py imports it where tests need it."""

import base64
import dataclasses
import http.server
import io
import json
import threading
import typing
from collections.abc import Callable, Iterator

import PIL.Image
import pytest


@dataclasses.dataclass(eq=False)
class Request:
    """A received request: headers with lower-case names, the text, and the images of the data URIs."""

    path: str
    headers: dict[str, str]
    body: dict[str, typing.Any]
    text: str
    images: list[PIL.Image.Image]


@dataclasses.dataclass(eq=False)
class Server:
    """A server of the chat/completions protocol that records its ``requests``; tests may replace ``answer``.

    ``answer`` gets a request and its number, from 0. It returns a text, or a status, a body and headers.
    """

    url: str
    answer: Callable[[Request, int], str | tuple[int, bytes, dict[str, str]]]
    requests: list[Request] = dataclasses.field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    lock = threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.path, headers, body, *_content(body))
            with lock:
                number = len(served.requests)
                served.requests.append(request)
            answer = served.answer(request, number)
            if isinstance(answer, str):
                message = {"role": "assistant", "content": answer}
                answer = 200, json.dumps({"choices": [{"index": 0, "message": message}]}).encode(), {}
            status, payload, headers = answer
            try:
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(payload))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)
            except OSError:
                pass  # the client has closed the connection

        def log_message(self, *_):
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Server(f"http://127.0.0.1:{listener.server_port}/v1", lambda *_: "yes")
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,))
    thread.start()
    yield served
    listener.shutdown()
    thread.join()
    listener.server_close()


def _content(body: dict[str, typing.Any]) -> tuple[str, list[PIL.Image.Image]]:
    parts = body["messages"][0]["content"]
    uris = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(uri.startswith("data:image/png;base64,") for uri in uris)
    data = [base64.b64decode(uri.partition(",")[2], validate=True) for uri in uris]
    images = [PIL.Image.open(io.BytesIO(png), formats=["PNG"]) for png in data]
    return "".join(part["text"] for part in parts if part["type"] == "text"), images
