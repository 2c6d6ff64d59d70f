"""The explorer behind reverse proxies and in frames; host names that are not allowed."""

import contextlib
import socket
import typing
import urllib.error
import urllib.request

import pytest

from revelio_jax.errors import InputError
from tests.helpers import coroutines
from tests.helpers.browser import served
from tests.helpers.proxy import port_of, proxied
from tests.revelio_jax.explore.conftest import STREAMS, ExplorerPage

pytest.importorskip("gradio", reason="gradio is not installed")
from starlette.responses import PlainTextResponse

from revelio_jax.explore import hosts

SITE, PATH = "clip.layer.2", "/user/me/proxy/7860"


def answer(url: str, host: str) -> tuple[int, str, str]:
    """Return status, text and the security policy of a page that is requested under a host name."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host})) as got:
            return got.status, got.read().decode(), got.headers["content-security-policy"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["content-security-policy"]


@pytest.mark.slow
def test_a_host_name_that_is_not_allowed_gets_the_flag_that_allows_it(explorer):
    status, text, policy = answer(explorer(SITE).url, "hub.example.org:8000")
    assert (status, text) == (
        400,
        "The explorer does not answer for this host name. To allow it, start it with --allow_host hub.example.org\n",
    )
    assert "frame-ancestors 'self';" in policy
    for host in ("localhost:1", "127.0.0.1", "[::1]:7860"):
        assert answer(explorer(SITE).url, host)[0] == 200
    for host in ("<b>", "[x"):
        assert answer(explorer(SITE).url, host)[:2] == (
            400,
            "The explorer does not answer for this host name. To allow it, start it with --allow_host NAME\n",
        )
    allowed = explorer(SITE, ("hub.example.org", "*.other.org"))
    for host, status in {
        "hub.example.org": 200,
        "HUB.example.org:443": 200,
        "a.b.other.org": 200,
        "other.org": 400,
    }.items():
        assert answer(allowed.url, host)[0] == status, host
    assert "frame-ancestors 'self' hub.example.org:* *.other.org:*;" in answer(allowed.url, "localhost")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strip", "headers", "allowed", "whole_address"),
    [
        (True, {"Host": "hub.example.org", "X-Forwarded-Host": "{address}"}, ("hub.example.org",), False),  # JupyterHub
        (True, {"Host": "{address}"}, (), False),  # nginx with proxy_set_header Host
        (False, {"Host": "{address}"}, (), False),  # a proxy that keeps the path
        (False, {"Host": "upstream:80"}, ("upstream",), True),  # nginx without it: only --root_path knows the address
    ],
    ids=["forwarded", "same_host", "keeps_path", "whole_address"],
)
def test_the_page_draws_behind_a_reverse_proxy(explorer, visit, strip, headers, allowed, whole_address):
    """The page loads, joins the queue and receives streamed events, all under the proxy's path."""
    with contextlib.ExitStack() as stack:
        root = PATH
        if whole_address:  # the address must be known before the explorer starts
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                proxy_port = free.getsockname()[1]
            root = f"http://127.0.0.1:{proxy_port}{PATH}"
        upstream = explorer(SITE, allowed, root)
        port = proxy_port if whole_address else 0
        url = stack.enter_context(proxied(port_of(upstream.url), PATH, strip, headers, port))
        ui = ExplorerPage(visit(url), upstream)
        ui.draw_and_wait("flat emoji of owl")
        ui.page.locator("#firing [data-latent]").first.click()
        ui.page.locator("#take").click()
        ui.wait_for_status("of pixels differ")
        (upstream.run / "report").mkdir(exist_ok=True)
        for name in ("index.html", "latent.html"):
            (upstream.run / "report" / name).write_text("<!doctype html><body>all latents</body>")
        report = visit(f"{url}report/latent.html#7").page
        report.get_by_role("link", name="Steer latent 7").click()
        report.locator("#name", has_text="Latent 7").wait_for()
        assert report.url.startswith(url)
        report.close()
        ui.page.close()
        ui.visited.errors[:] = [e for e in ui.visited.errors if not any(stream in e for stream in STREAMS)]


@pytest.mark.slow
@pytest.mark.parametrize("allowed", [False, True])
def test_only_pages_of_allowed_hosts_show_the_explorer_in_a_frame(explorer, chromium, tmp_path, allowed):
    upstream = explorer(SITE, ("localhost",) if allowed else ())
    (tmp_path / "index.html").write_text(f'<iframe src="{upstream.url}" width=900 height=700></iframe>')
    with served(tmp_path) as url:
        page = chromium.new_context().new_page()
        page.goto(url.replace("127.0.0.1", "localhost"))
        button = page.frame_locator("iframe").get_by_role("button", name="Draw", exact=True)
        if allowed:
            button.wait_for(timeout=30_000)
        else:
            page.wait_for_timeout(2000)
            assert button.count() == 0
        page.context.close()


@pytest.mark.parametrize("name", ["https://a.org", "a.org:80", "a/b", "*", "", "a b", "*.*.org"])
def test_a_malformed_host_name_is_refused(name):
    with pytest.raises(InputError, match=r"--allow_host is .*must be a host name without scheme, port and path"):
        hosts.check_names(["a.org", name])


@pytest.mark.parametrize("root", ["user/me", "//a", "/a b", "/a?b", "ftp://a/b", "http://"])
def test_a_malformed_path_is_refused(root):
    with pytest.raises(InputError, match=r"--root_path is .*must be the path of the page at a proxy"):
        hosts.check_root(root)
    assert hosts.check_root("/a/b/") == "/a/b"
    assert hosts.check_root("https://a.org/b/") == "https://a.org/b"
    assert hosts.check_root(None) == hosts.check_root("/") == ""


def posted(headers: dict[str, str], names: tuple[str, ...] = ()) -> tuple[int, str]:
    """Return the status and the text of a POST request with these headers; 200 if it reaches the application."""
    sent: list[typing.Any] = []

    async def receive():
        raise AssertionError

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": raw}
    coroutines.run(hosts.SameOrigin(PlainTextResponse("ran"), names)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


def test_a_refused_request_names_the_flag_that_allows_it():
    """nginx sends its own address as Host unless it is configured otherwise."""
    headers = {"host": "127.0.0.1:7860", "origin": "https://hub.example.org:8000"}
    refused = "The explorer does not answer requests of other pages. To allow them, start it with --allow_host "
    assert posted(headers) == (403, f"{refused}hub.example.org\n")
    assert posted(headers, ("hub.example.org",)) == (200, "ran")
    for origin in ("null", "http://[", "http://<b>"):
        assert posted(headers | {"origin": origin}) == (403, f"{refused}NAME\n")


def test_the_first_of_several_forwarded_hosts_is_the_host_of_the_page():
    headers = {"host": "127.0.0.1:7860", "origin": "https://hub.example.org"}
    for forwarded, status in {
        "hub.example.org": 200,
        "hub.example.org, inner.example.org": 200,
        "hub.example.org:443,inner.example.org": 200,
        "inner.example.org, hub.example.org": 403,
        ", hub.example.org": 403,
    }.items():
        assert posted(headers | {"x-forwarded-host": forwarded})[0] == status, forwarded
