"""The command refuses wrong input before it loads a model, and contacts no other host."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from revelio_jax.errors import report_errors
from revelio_jax.explore import backend, command
from tests.helpers import ROOT
from tests.revelio_jax.explore.conftest import ExplorerPage

pytest.importorskip("gradio", reason="gradio is not installed")
from revelio_jax.explore import server

SITE = "clip.layer.2"
# Runs in the explorer's process: it refuses and records every connection and name lookup to another machine.
GUARD = """
import socket, os

def note(address):
    with open(os.environ["GUARD"], "a") as file:
        file.write(f"{address!r}\\n")
    raise OSError("the network is off")

connect, look_up = socket.socket.connect, socket.getaddrinfo

def guarded(method):
    def call(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            note(address)
        return method(self, address)
    return call

socket.socket.connect = guarded(socket.socket.connect)
socket.socket.connect_ex = guarded(socket.socket.connect_ex)

def getaddrinfo(host, *arguments, **options):
    if host not in ("127.0.0.1", "localhost", "::1", None):
        note(host)
    return look_up(host, *arguments, **options)

socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def config(tmp_path, write_run, monkeypatch):
    monkeypatch.chdir(ROOT)
    return write_run(tmp_path / "run", SITE)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """``refused(config, *flags)`` returns the line that the command prints before it exits with status 2."""
    monkeypatch.setattr(backend, "load_pipeline", lambda model: pytest.fail("the model was loaded"))

    def run(config, *flags: str) -> str:
        (tmp_path / "explore.json").write_text(config.to_json())
        argv = [f"--config={tmp_path / 'explore.json'}", "--port=0", *flags]
        with pytest.raises(SystemExit) as stop, report_errors():
            command.main(argv)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def replaced(config, section: str, **values):
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_a_run_without_an_export_is_refused(refused, config, tmp_path):
    other = dataclasses.replace(config, run=str(tmp_path / "other"))
    assert "revelio export" in refused(other)
    assert "config.run is not set" in refused(dataclasses.replace(config, run=None))
    assert "cfg.json is missing" in refused(config, f"--sae={tmp_path}")


def test_a_model_that_is_not_a_pipeline_or_not_that_of_the_sae_is_refused(refused, config):
    for family in ("text", "dit"):
        assert "the explorer supports sd, sdxl, flux" in refused(replaced(config, "model", family=family))
    assert "was trained on 'extract/miniature/sd'" in refused(replaced(config, "model", id="another"))
    assert refused(replaced(config, "steer", height=36)).startswith("error: config.steer.height")


@pytest.mark.parametrize(
    ("site", "message"), [("clip.layer.9", "unknown hook point"), ("unet.up_blocks.1", "its width is 128")]
)
def test_a_hook_point_that_does_not_fit_the_model_is_refused(refused, config, site, message):
    file = pathlib.Path(config.run, "export", "cfg.json")
    cfg = json.loads(file.read_text())
    cfg["metadata"]["site"] = site
    file.write_text(json.dumps(cfg))
    assert message in refused(config)


def test_a_port_or_address_that_cannot_be_used_is_refused(refused, config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}: Address already in use" in refused(config, f"--port={port}")
    assert "between 1 and 65535" in refused(config, "--port=70000")
    assert "cannot listen on" in refused(config, "--host=no.such.host.invalid")


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_a_public_address_prints_a_warning(config, tmp_path, monkeypatch, capsys, host, warned):
    class Silent:
        def run(self, sockets):
            assert sockets[0].getsockname()[0] == host
            sockets[0].close()

    monkeypatch.setattr(server, "server", lambda app: Silent())
    (tmp_path / "explore.json").write_text(config.to_json())
    argv = [f"--config={tmp_path / 'explore.json'}", "--port=0", f"--host={host}"]
    command.main(argv)
    out, err = capsys.readouterr()
    assert out.startswith(f"explorer: http://{host}:")
    assert ("everyone who can reach this machine" in err) == warned
    assert len(err.strip().splitlines()) == warned


@pytest.fixture
def running(config, tmp_path):
    """Run the command in a process that can only reach this machine; yield the process and its address."""
    (tmp_path / "explore.json").write_text(config.to_json())
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "guard"), str(ROOT)]),
        "GUARD": str(tmp_path / "left"),
        "TMPDIR": str(tmp_path / "tmp"),
        "GRADIO_ANALYTICS_ENABLED": "True",  # the command must override this
    }
    argv = [sys.executable, "-m", "revelio_jax.explore", f"--config={tmp_path / 'explore.json'}", "--port=0"]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    line = process.stdout.readline()
    assert line.startswith("explorer: "), line
    yield process, line.split()[1]
    process.kill()
    process.wait()


def fetch(url: str, **headers: str) -> tuple[int, dict[str, str], str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as got:
            return got.status, dict(got.headers), got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


@pytest.mark.slow
def test_the_explorer_contacts_no_other_host_and_leaves_no_files(running, config, visit, explorer, tmp_path):
    process, url = running
    ui = ExplorerPage(visit(url, permissions=["clipboard-read", "clipboard-write"]), explorer(SITE))
    ui.draw_and_wait("flat emoji of owl")
    ui.page.locator("#firing [data-latent]").first.click()
    ui.page.locator("#take").click()
    ui.wait_for_status("of pixels differ")
    ui.page.close()
    ui.visited.errors[:] = [e for e in ui.visited.errors if "/gradio_api/" not in e]
    assert not (tmp_path / "left").exists()

    status, headers, _ = fetch(url)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "The report is missing" in fetch(f"{url}report/")[2]
    report = pathlib.Path(config.run, "report")
    report.mkdir()
    for name in ("index.html", "latent.html"):  # written while the explorer runs
        (report / name).write_text("<!doctype html><body>all latents</body>")
    (report / "a.txt").write_text("unchanged </body>")
    assert "all latents" in fetch(f"{url}report/")[2]
    assert fetch(f"{url}report/a.txt")[2] == "unchanged </body>"
    page = visit(f"{url}report/latent.html#7").page  # the link back to the explorer
    page.evaluate("location.hash = '#11&more'")
    page.get_by_role("link", name="Steer latent 11").click()
    page.locator("#name", has_text="Latent 11").wait_for()
    page.close()
    assert fetch(f"{url}report/../export/cfg.json")[0] == 404
    assert fetch(f"{url}report/%2e%2e/export/cfg.json")[0] == 404
    assert fetch(url, Host="elsewhere.example")[0] == 400  # DNS rebinding
    for page in ("docs", "redoc", "openapi.json"):
        assert "swagger" not in fetch(f"{url}{page}")[2].lower()

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not [name for name in os.listdir(tmp_path / "tmp") if name.startswith("revelio")]
    assert not (tmp_path / "left").exists()
