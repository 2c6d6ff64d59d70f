"""The page on a port: Gradio and the report in one application, which asks nothing of any other host.

Gradio's analytics, version check, share links, monitoring and server-side rendering are off here, not in the
environment of who runs it, and the page is told by a Content-Security-Policy to load from nowhere else.
"""

import ipaddress
import pathlib
import socket

import fastapi
import gradio as gr
import uvicorn
from fastapi.responses import FileResponse, HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from revelio_jax.errors import InputError
from revelio_jax.explore.theme import CSS, theme

BESIDE = pathlib.Path(__file__).with_name("beside.js")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    # Gradio makes its page with inline scripts and styles, and templates with functions of text.
    b"content-security-policy": b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    b"frame-ancestors 'self'; base-uri 'self'; form-action 'self'",
    b"referrer-policy": b"no-referrer",
    b"x-content-type-options": b"nosniff",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is any that is free. Raises InputError where it cannot be had."""
    if not 0 <= port < 65536:
        raise InputError(f"--port is {port}; it must be between 0, which takes one that is free, and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"--host {host} --port {port} cannot be listened on: {why}; --port 0 takes one that is free"
        ) from error
    return listener


def application(page: gr.Blocks, report: pathlib.Path, host: str) -> ASGIApp:
    """The page at /, the report of the run at /report, and headers on all that is answered."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages come from a CDN
    app.mount("/report", ReportFiles(report))
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css_paths=[CSS],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size=1,  # a byte: nothing of the page is uploaded
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
    )
    if is_loopback(host):  # a name that another host's page makes point here is refused
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, host])
    return WithHeaders(app)


class ReportFiles:
    """The static report, which may be made while the explorer runs; its pages get a link to the explorer."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.files = folder, StaticFiles(directory=folder, html=True, check_dir=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self.files
        name = self.files.get_path(scope)
        found, _ = self.files.lookup_path("index.html" if scope["path"].endswith("/") else name)
        if not (self.folder / "index.html").is_file():
            text = "There is no report yet: python -m revelio_jax.interpret.report makes it."
            answer = HTMLResponse(f"<p>{text} <a href='/'>Explorer</a></p>", 404)
        elif name == BESIDE.name:
            answer = FileResponse(BESIDE)
        elif found.endswith(".html"):
            page = pathlib.Path(found).read_text()
            answer = HTMLResponse(page.replace("</body>", f'<script src="{BESIDE.name}"></script></body>'))
        await answer(scope, receive, send)


class WithHeaders:
    """Adds HEADERS to every answer."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message):
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].lower() not in HEADERS]
                message["headers"] = [*kept, *HEADERS.items()]
            await send(message)

        await self.app(scope, receive, with_headers)


def server(app: ASGIApp) -> uvicorn.Server:
    """What answers, once its ``run(sockets=[...])`` is called, until a signal or ``should_exit`` ends it."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False))
