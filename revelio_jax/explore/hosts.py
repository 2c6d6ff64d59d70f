"""The hosts under which the page may be opened: names in requests, frames on other pages, and a proxy's path."""

import ipaddress
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
    """An application that refuses requests for other host names, which may resolve to this machine (DNS rebinding).

    With ``any_address``, every IP address is allowed, because it cannot be resolved to another one.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], any_address: bool):
        self.app, self.names, self.any_address = app, [name.lower() for name in names], any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request for an allowed host; answer others with status 400 and the flag to use."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        name = _host_name(f"//{Headers(scope=scope).get('host', '')}")
        if _is_allowed(name, self.names) or (self.any_address and is_address(name)):
            await self.app(scope, receive, send)
            return
        text = "The explorer does not answer for this host name. To allow it, start it with"
        await _refusal(400, text, name)(scope, receive, send)


class SameOrigin:
    """An application that refuses requests that pages of other sites send (CSRF).

    Browsers add the header Origin to every POST request. Its host must be the host of the request, also as a proxy
    forwards it, or one of ``names``.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], root: str = ""):
        self.app = app
        self.names = [name.lower() for name in (*names, urllib.parse.urlsplit(root).hostname or "") if name]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request of the page itself or of a program; answer others with status 403 and the flag to use."""
        if scope["type"] not in ("http", "websocket") or scope.get("method") in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        forwarded = headers.get("x-forwarded-host", "").split(",")[0].strip()  # each of several proxies adds a name
        own = [_host_name(f"//{host}") for host in (headers.get("host", ""), forwarded)]
        is_own = _is_allowed(_host_name(origin or ""), [*self.names, *filter(None, own)])
        if is_own if origin is not None else headers.get("sec-fetch-site") != "cross-site":
            await self.app(scope, receive, send)
            return
        text = "The explorer does not answer requests of other pages. To allow them, start it with"
        await _refusal(403, text, _host_name(origin or ""))(scope, receive, send)


def is_address(name: str) -> bool:
    """Return whether a host is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(url: str) -> str:
    """Return the host name of a URL in lower case, or "" if it has none or is malformed."""
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _refusal(status: int, text: str, name: str) -> PlainTextResponse:
    """Return a response that ends with --allow_host and the host name, or NAME if it is not made of [a-z0-9.-]."""
    shown = name if re.fullmatch(r"[a-z0-9.-]+", name) else "NAME"
    return PlainTextResponse(f"{text} --allow_host {shown}\n", status)


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    return any(name == each or (each[:2] == "*." and name.endswith(each[1:])) for each in allowed)


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
