"""A reverse proxy on this machine, as JupyterHub and nginx are: it serves another server under a path, and streams."""

import contextlib
import http.client
import http.server
import socket
import threading
import urllib.parse
from collections.abc import Iterator

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length"}


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # a page loads many files at once
    daemon_threads = True  # streams stay open


@contextlib.contextmanager
def proxied(port: int, path: str, strip: bool, headers: dict[str, str], own_port: int = 0) -> Iterator[str]:
    """Serve the server at ``port`` under ``path``; yield the address, which ends with a slash.

    With ``strip``, the path is removed from requests. ``headers`` are set on every request; {address} in a value is the
    host and port of the proxy. ``own_port`` is its port; 0 chooses a free one.
    """

    upstreams: list[http.client.HTTPConnection] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def forward(self) -> None:
            if not self.path.startswith(f"{path}/"):
                self.send_error(404)
                return
            target = self.path.removeprefix(path) if strip else self.path
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            sent = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            sent |= {name: value.format(address=self.server.server_address_text) for name, value in headers.items()}
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            upstreams.append(upstream)
            with contextlib.closing(upstream), contextlib.suppress(OSError, http.client.HTTPException):
                upstream.request(self.command, target, body or None, sent)
                response = upstream.getresponse()
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Connection", "close")
                self.end_headers()
                while part := response.read1(65_536):  # what has arrived, so that events are not held back
                    self.wfile.write(part)
                    self.wfile.flush()

        do_GET = do_POST = do_HEAD = do_OPTIONS = forward

        def log_message(self, *args) -> None:
            pass

    with _Server(("127.0.0.1", own_port), Handler) as server:
        server.server_address_text = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{server.server_address_text}{path}/"
        finally:
            for upstream in upstreams:  # ends streams, for which the other server would wait
                if upstream.sock:
                    with contextlib.suppress(OSError):
                        upstream.sock.shutdown(socket.SHUT_RDWR)
            server.shutdown()
            thread.join()


def port_of(url: str) -> int:
    """Return the port of an address."""
    return urllib.parse.urlsplit(url).port or 80
