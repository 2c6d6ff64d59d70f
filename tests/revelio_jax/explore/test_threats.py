"""The threats in docs/security.md: CSRF, DNS rebinding, path traversal, large requests and slow clients."""

import contextlib
import http.client
import socket
import time

import pytest

from tests.helpers import ROOT

pytest.importorskip("gradio", reason="gradio is not installed")
import gradio as gr

from revelio_jax.explore import connections, server
from tests.helpers import page_server

JOIN, CLOSED_WITHIN = "/gradio_api/queue/join", 20


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """``serve(host)`` serves a small page as the command does, with --host and --allow_host; returns its port."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "report").mkdir()
    (folder / "report" / "index.html").write_text("<!doctype html><body>all latents</body>")
    (folder / "secret.txt").write_text("secret")
    (folder / "report" / "link.txt").symlink_to(folder / "secret.txt")
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("GRADIO_ANALYTICS_ENABLED", "False")

        def start(host: str = "127.0.0.1", allowed: tuple[str, ...] = (), root: str = "") -> int:
            with gr.Blocks(analytics_enabled=False) as page:
                box = gr.Textbox()
                box.submit(lambda text: text, box, box)
            return stack.enter_context(
                page_server.serving(server.application(page, folder / "report", host, allowed, root))
            )

        yield start


@pytest.fixture(scope="module")
def port(serve) -> int:
    return serve()


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    """Send a request exactly as it is written; return status and text. _ in names of headers stands for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host="Host" in headers)
        if body or method == "POST":
            headers = {"Content_Length": str(len(body)), "Content_Type": "application/json"} | headers
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")


@pytest.mark.slow
def test_requests_that_other_pages_send_are_refused(serve, port):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": f"https://127.0.0.1.evil.example:{port}"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": ""},
        {"Sec_Fetch_Site": "cross-site"},
    ):
        for method in ("POST", "OPTIONS", "DELETE"):
            assert ask(port, method, JOIN, b"{}" if method == "POST" else b"", **headers)[0] == 403, headers
    for headers in (
        {},
        {"Origin": f"http://127.0.0.1:{port}"},
        {"Origin": "http://localhost:8000"},
        {"Host": "localhost", "Origin": "https://hub.example", "X_Forwarded_Host": "hub.example"},  # a proxy
    ):
        assert ask(port, "POST", JOIN, b"{}", **headers)[0] == 422, headers  # it reaches Gradio, which wants fields
    other = serve(allowed=("hub.example",), root="https://proxy.example/user/me")
    assert ask(other, "POST", JOIN, b"{}", Origin="https://hub.example")[0] == 422
    assert ask(other, "POST", JOIN, b"{}", Origin="https://proxy.example")[0] == 422
    assert ask(other, "POST", JOIN, b"{}", Origin="https://evil.example")[0] == 403


@pytest.mark.slow
def test_a_name_that_may_resolve_to_another_address_is_refused_on_every_address(serve):
    port = serve(host="0.0.0.0")
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[", "0x7f.1"):
        assert ask(port, "GET", "/", Host=host)[0] == 400, host
    for host in (f"127.0.0.1:{port}", "192.168.0.7", "[fe80::1]:80", "localhost", socket.gethostname()):
        assert ask(port, "GET", "/", Host=host)[0] == 200, host
    same = {"Host": "192.168.0.7", "Origin": "http://192.168.0.7"}
    assert ask(port, "POST", JOIN, b"{}", **same)[0] == 422
    assert ask(port, "POST", JOIN, b"{}", Host="192.168.0.7", Origin="http://localhost")[0] == 403


@pytest.mark.slow
def test_no_path_leads_out_of_the_report_or_to_other_files(port, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert "all latents" in ask(port, "GET", "/report/")[1]
    up = ("..", "%2e%2e", "..%2f..", "%2e%2e%2fx/..", ".%2e", "..%5c..", "....//", "x/../..")
    paths = [f"/report/{part}/secret.txt" for part in up] + ["/report/link.txt", "/report//etc/passwd"]
    for name in (ROOT / "README.md", "README.md", "/etc/passwd", "../README.md", "..%2f..%2fetc%2fpasswd"):
        paths += [f"/gradio_api/file={name}", f"/file={name}", f"/static/{name}", f"/assets/{name}"]
    paths += ["/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file=http://127.0.0.1:1/"]
    for path in paths:
        status, text = ask(port, "GET", path)
        assert status in (400, 403, 404, 405), path
        assert "secret" not in text
        assert "root:" not in text
        assert "k-sparse" not in text


@pytest.mark.slow
def test_large_requests_and_uploads_are_refused(port):
    large = str(connections.MOST_BODY_BYTES + 1)
    assert ask(port, "POST", JOIN, b"x" * (connections.MOST_BODY_BYTES + 1))[0] == 413
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:  # a size that is not declared
        client.sendall(f"POST {JOIN} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(int(large) // 65_536 + 2):
                client.sendall(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 413"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 1_000_000)
        assert client.recv(12) in (b"HTTP/1.1 400", b"")
    form = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n' + b"x" * 99 + b"\r\n--b--\r\n"
    )
    status, text = ask(port, "POST", "/gradio_api/upload", form, Content_Type="multipart/form-data; boundary=b")
    assert status in (400, 413), text


@pytest.mark.slow
def test_slow_clients_neither_block_others_nor_stay_connected(port, monkeypatch):
    """250 clients send part of the headers, part of the body, part of a second request, or nothing."""
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    head = b"GET /robots.txt HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = f"POST {JOIN} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{{".encode()
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(250):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=CLOSED_WITHIN))
            client.sendall((head, body, head + b"\r\n" + head, b"")[number % 4])
            clients.append(client)
        start = time.monotonic()
        assert ask(port, "GET", "/")[0] == 200
        assert time.monotonic() - start < CLOSED_WITHIN / 2
        for client in clients:
            while client.recv(65_536):  # until the server closes the connection; a timeout fails the test
                pass
