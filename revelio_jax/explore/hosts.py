"""The hosts under which the page may be opened: names in requests, frames on other pages, and a proxy's path."""

import re
import urllib.parse
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from revelio_jax.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check_names(names: Sequence[str]) -> None:
    """Raise InputError if a value of --allow_host is not a host name."""
    for name in names:
        if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", name):
            raise InputError(
                f"--allow_host is {name!r}; it must be a host name without scheme, port and path, for example "
                "hub.example.org or *.example.org"
            )


def check_root(root: str | None) -> str:
    """Return the value of --root_path without a slash at its end; "" for None. Raise InputError if it is malformed."""
    root = (root or "").rstrip("/")
    is_path = re.fullmatch(r"(/[^/?#\s]+)*", root)
    is_url = re.fullmatch(r"https?://[^/?#\s]+(/[^/?#\s]+)*", root)
    if not (is_path or is_url):
        raise InputError(
            f"--root_path is {root!r}; it must be the path of the page at a proxy, for example /user/me/proxy/7860, or "
            "its whole address, for example https://hub.example.org/user/me/proxy/7860"
        )
    return root


def frame_ancestors(names: Sequence[str]) -> str:
    """Return the sources of the header Content-Security-Policy whose pages may show this page in a frame."""
    return " ".join(["'self'", *(f"{name}:*" for name in names)])


class AllowedHosts:
    """An application that refuses requests for other host names, which may resolve to this machine (DNS rebinding)."""

    def __init__(self, app: ASGIApp, names: Sequence[str]):
        self.app, self.names = app, [name.lower() for name in names]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request for an allowed host; answer others with status 400 and the flag to use."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if any(name == allowed or (allowed[:2] == "*." and name.endswith(allowed[1:])) for allowed in self.names):
            await self.app(scope, receive, send)
            return
        shown = name if re.fullmatch(r"[a-z0-9.-]+", name) else "NAME"
        text = f"The explorer does not answer for this host name. To allow it, start it with --allow_host {shown}\n"
        await PlainTextResponse(text, status_code=400)(scope, receive, send)


class UnderPath:
    """An application at a path of a proxy. Some proxies remove the path from requests, others keep it."""

    def __init__(self, app: ASGIApp, root: str):
        self.app, self.prefix = app, urllib.parse.urlsplit(root).path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request without the path of the proxy."""
        path = scope.get("path", "")
        if self.prefix and (path == self.prefix or path.startswith(f"{self.prefix}/")):
            path = path.removeprefix(self.prefix) or "/"
            scope = {**scope, "path": path, "raw_path": urllib.parse.quote(path).encode()}
        await self.app(scope, receive, send)
