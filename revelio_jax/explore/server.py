"""The web server: Gradio's page and the report in one application that contacts no other host.

Gradio's analytics, version check, share links, monitoring and server-side rendering are always off, independent of
environment variables. A Content-Security-Policy keeps the page from loading resources of other hosts, and other pages
from showing it in a frame, except those of --allow_host.
"""

import html
import ipaddress
import pathlib
import socket
from collections.abc import Sequence

import fastapi
import gradio as gr
import uvicorn
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from revelio_jax.errors import InputError
from revelio_jax.explore import connections, hosts
from revelio_jax.explore.theme import CSS, theme

REPORT_LINK = pathlib.Path(__file__).with_name("report_link.js")
# Gradio uses inline scripts and styles, and evaluates its templates.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors {frames}; base-uri 'self'; form-action 'self'"
)
HEADERS = {
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 chooses a free port. Raise InputError if the address cannot be used."""
    if not 0 <= port < 65536:
        raise InputError(f"--port is {port}; it must be between 1 and 65535, or 0 for a free port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on --host {host} --port {port}: {reason}; --port 0 chooses a free port"
        ) from error
    return listener


def application(
    page: gr.Blocks, report: pathlib.Path, host: str, allowed: Sequence[str] = (), root: str = ""
) -> ASGIApp:
    """Return the application: the page at /, the run's report at /report, and security headers on every response.

    ``allowed`` are names of other hosts: requests may name them, and their pages may show this page in a frame.
    ``root`` is the path or address of the page at a proxy. Raise InputError if one of them is malformed.
    """
    hosts.check_names(allowed)
    root = hosts.check_root(root)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # these pages load resources from a CDN
    app.mount("/report", ReportFiles(report, root))
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        root_path=root or None,
        theme=theme(),
        css_paths=[CSS],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size=1,  # byte: the page has no uploads
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    served: ASGIApp = connections.LimitedBody(hosts.UnderPath(app, root))
    own = [*hosts.LOOPBACK, host, *([] if is_loopback(host) else [socket.gethostname(), socket.getfqdn()])]
    served = hosts.SameOrigin(served, [*(own if is_loopback(host) else []), *allowed], root)
    served = hosts.AllowedHosts(served, [*own, *allowed], any_address=not is_loopback(host))
    policy = POLICY.format(frames=hosts.frame_ancestors(allowed))
    return WithHeaders(served, HEADERS | {b"content-security-policy": policy.encode()})


class ReportFiles:
    """An application that serves the report with a link to the explorer. The report may be written while it runs."""

    def __init__(self, folder: pathlib.Path, root: str = ""):
        self.root = root
        self.folder, self.files = folder, StaticFiles(directory=folder, html=True, check_dir=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = self.files
        name = self.files.get_path(scope)
        path, _ = self.files.lookup_path("index.html" if scope["path"].endswith("/") else name)
        if not (self.folder / "index.html").is_file():
            text = "The report is missing. Run revelio report to write it."
            response = HTMLResponse(f"<p>{text} <a href='{html.escape(self.root)}/'>Explorer</a></p>", 404)
        elif name == REPORT_LINK.name:
            response = FileResponse(REPORT_LINK)
        elif path.endswith(".html"):
            page = pathlib.Path(path).read_text()
            response = HTMLResponse(page.replace("</body>", f'<script src="{REPORT_LINK.name}"></script></body>'))
        await response(scope, receive, send)


class WithHeaders:
    """An application that adds headers to every response of another application."""

    def __init__(self, app: ASGIApp, headers: dict[bytes, bytes]):
        self.app, self.headers = app, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message):
            if message["type"] == "http.response.start":
                others = [pair for pair in message["headers"] if pair[0].lower() not in self.headers]
                message["headers"] = [*others, *self.headers.items()]
            await send(message)

        await self.app(scope, receive, with_headers)


def server(app: ASGIApp) -> uvicorn.Server:
    """Return the server; ``run(sockets=[...])`` serves until a signal arrives or ``should_exit`` is set."""
    return uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, http=connections.TimedProtocol)
    )
