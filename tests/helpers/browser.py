"""Fixtures with a real browser: headless Chromium that can reach only the server of the page.

tests/conftest.py imports the fixtures ``chromium`` (one per session) and ``visit``.
"""

import contextlib
import functools
import http.server
import pathlib
import shutil
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence

import pytest

if typing.TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE, DESKTOP = (360, 740), (1280, 900)


def executable() -> str | None:
    """Return the path of an installed Chromium or Chrome, None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@contextlib.contextmanager
def launched() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator["Browser"]:
    pytest.importorskip("playwright", reason="playwright is not installed")
    if not executable():
        pytest.skip("Chromium is not installed")
    with launched() as browser:
        yield browser


class Visit:
    """A page with its errors, its requests, and the requests to other hosts (``left``), which are blocked."""

    def __init__(self, page: "Page", allowed: tuple[str, ...]):
        self.page, self.errors, self.requests, self.left = page, [], [], []
        self._responses: list = []
        page.on("console", lambda m: m.type in ("error", "warning") and self.errors.append(m.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("requestfailed", self._failed)
        page.on("response", lambda response: self._responses.append(response))

        def through(route):
            url = route.request.url
            self.requests.append(url)
            if url.startswith(allowed):
                return route.continue_()
            self.left.append(url)
            return route.abort()

        page.route("**/*", through)

    def _failed(self, request) -> None:
        if request.failure != "net::ERR_ABORTED":  # cut off by leaving the page
            self.errors.append(f"{request.failure}: {request.url}")

    def loaded(self) -> int:
        """Return the bytes of all responses, once the network is idle."""
        self.page.wait_for_load_state("networkidle")
        return sum(len(response.body()) for response in self._responses)

    def overflow(self) -> int:
        """Return the pixels by which the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def visit(chromium) -> Iterator[Callable[..., Visit]]:
    """``visit(url, size=DESKTOP, dark=False, **context)`` opens a page.

    The test fails if the page logs an error or requests anything but data:, blob: and its own host (or file:).
    """
    contexts, visits = [], []

    def open_page(url: str, size: tuple[int, int] = DESKTOP, dark: bool = False, **more) -> Visit:
        width, height = size
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **more
        )
        contexts.append(context)
        own = "/".join(url.split("/")[:3])
        visits.append(Visit(context.new_page(), ("data:", "blob:", own)))
        visits[-1].page.set_default_timeout(30_000)
        visits[-1].page.goto(url)
        return visits[-1]

    yield open_page
    for context in contexts:
        context.close()
    for visited in visits:
        assert not visited.left
        assert not visited.errors, visited.errors


def until(page: "Page", expression: str, seconds: float = 20) -> None:
    """Wait until a JavaScript expression is true. Playwright's own wait needs eval, which the pages forbid."""
    end = time.monotonic() + seconds
    while not _is(page, expression):
        assert time.monotonic() < end, f"never came true: {expression}"
        page.wait_for_timeout(20)


def _is(page: "Page", expression: str) -> bool:
    from playwright.sync_api import Error

    try:
        return page.evaluate(f"Boolean({expression})")
    except Error as error:
        if "navigation" not in str(error):
            raise
        return False  # another page is loading


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # a page loads many files at once


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its URL, which ends with a slash."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def first_loads(folder: pathlib.Path, pages: Sequence[str]) -> dict[str, int]:
    """Return the kilobytes that each page of a folder loads at first."""
    loads = {}
    with served(folder) as url, launched() as browser:
        for name in pages:
            page = browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]}).new_page()
            visited = Visit(page, (url,))
            page.goto(url + name)
            loads[name.partition("#")[0]] = round(visited.loaded() / 1000)
            assert not visited.errors, visited.errors
    return loads
