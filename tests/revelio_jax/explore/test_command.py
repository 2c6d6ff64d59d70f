"""The command: what it refuses before it loads a model, what it listens on, and whom it asks: nobody."""

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

from revelio_jax.errors import reported
from revelio_jax.explore import backend, command
from tests.helpers import ROOT
from tests.revelio_jax.explore.conftest import Use

pytest.importorskip("gradio", reason="gradio is not installed")
from revelio_jax.explore import server

SITE = "clip.layer.2"
# In the explorer's process: no name is looked up and nothing connected to but this machine; what tries is
# written down.
GUARD = """
import socket, os

def note(what):
    with open(os.environ["GUARD"], "a") as file:
        file.write(f"{what!r}\\n")
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

def getaddrinfo(host, *given, **more):
    if host not in ("127.0.0.1", "localhost", "::1", None):
        note(host)
    return look_up(host, *given, **more)

socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def config(tmp_path, write_run, monkeypatch):
    monkeypatch.chdir(ROOT)
    return write_run(tmp_path / "run", SITE)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """``refused(config, *flags)``: the one line that the command ends with, before a model is loaded."""
    monkeypatch.setattr(backend, "load_pipeline", lambda model: pytest.fail("the model was loaded"))

    def run(config, *flags: str) -> str:
        (tmp_path / "config.json").write_text(config.to_json())
        argv = [f"--config={tmp_path / 'config.json'}", "--port=0", *flags]
        with pytest.raises(SystemExit) as stop, reported():
            command.main(argv)
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def replaced(config, section: str, **values):
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def test_a_run_that_has_no_export(refused, config, tmp_path):
    other = replaced(config, "train", run=str(tmp_path / "other"))
    assert "python -m revelio_jax.export makes it" in refused(other)
    assert "config.run is empty" in refused(replaced(config, "train", run=""))
    assert "cfg.json is missing" in refused(config, f"--sae={tmp_path}")


def test_a_model_that_cannot_be_sampled_or_is_another(refused, config):
    for family in ("text", "dit"):
        assert "samples sd, sdxl, flux" in refused(replaced(config, "model", family=family))
    assert "was trained on 'extract/miniature/sd'" in refused(replaced(config, "model", id="another"))
    said = refused(replaced(config, "steer", height=36))
    assert said.startswith("error: config.steer.height")


@pytest.mark.parametrize(
    ("site", "said"), [("clip.layer.9", "unknown hook point"), ("unet.up_blocks.1", "its width is 128")]
)
def test_a_site_that_is_not_the_model_s(refused, config, site, said):
    file = pathlib.Path(config.run, "export", "cfg.json")
    cfg = json.loads(file.read_text())
    cfg["metadata"]["site"] = site
    file.write_text(json.dumps(cfg))
    assert said in refused(config)


def test_a_port_or_an_address_that_cannot_be_had(refused, config):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be listened on: Address already in use" in refused(config, f"--port={port}")
    assert "between 0" in refused(config, "--port=70000")
    assert "cannot be listened on" in refused(config, "--host=no.such.host.invalid")


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_who_listens_to_others_is_warned(config, tmp_path, monkeypatch, capsys, host, warned):
    class Silent:
        def run(self, sockets):
            assert sockets[0].getsockname()[0] == host
            sockets[0].close()

    monkeypatch.setattr(server, "server", lambda app: Silent())
    (tmp_path / "config.json").write_text(config.to_json())
    argv = [f"--config={tmp_path / 'config.json'}", "--port=0", f"--host={host}"]
    command.main(argv)
    out, err = capsys.readouterr()
    assert out.startswith(f"explorer: http://{host}:")
    assert ("whoever reaches this machine" in err) == warned
    assert len(err.strip().splitlines()) == warned


@pytest.fixture
def running(config, tmp_path):
    """The command in a process of its own that reaches nothing but this machine; its address."""
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "guard"), str(ROOT)]),
        "GUARD": str(tmp_path / "left"),
        "TMPDIR": str(tmp_path / "tmp"),
        "GRADIO_ANALYTICS_ENABLED": "True",  # the environment does not turn them on again
    }
    argv = [sys.executable, "-m", "revelio_jax.explore", f"--config={tmp_path / 'config.json'}", "--port=0"]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    line = process.stdout.readline()
    assert line.startswith("explorer: "), line
    yield process, line.split()[1]
    process.kill()
    process.wait()


def answer(url: str, **headers: str) -> tuple[int, dict[str, str], str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as got:
            return got.status, dict(got.headers), got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read().decode()


def test_it_asks_nobody_and_leaves_nothing(running, config, visit, explorer, tmp_path):
    process, url = running
    used = Use(visit(url, permissions=["clipboard-read", "clipboard-write"]), explorer(SITE))
    used.drawn("flat emoji of owl")
    used.page.locator("#firing [data-latent]").first.click()
    used.page.locator("#take").click()
    used.until_status("of pixels differ")
    used.page.close()
    used.visited.errors[:] = [e for e in used.visited.errors if "/gradio_api/" not in e]
    assert not (tmp_path / "left").exists()

    status, headers, _ = answer(url)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    assert "no report yet" in answer(f"{url}report/")[2]
    report = pathlib.Path(config.run, "report")
    report.mkdir()
    for name in ("index.html", "latent.html"):  # made while the explorer runs
        (report / name).write_text("<!doctype html><body>what the latents mean</body>")
    (report / "a.txt").write_text("as it is </body>")
    assert "what the latents mean" in answer(f"{url}report/")[2]
    assert answer(f"{url}report/a.txt")[2] == "as it is </body>"
    page = visit(f"{url}report/latent.html#7").page  # and there is a way back
    page.evaluate("location.hash = '#11&more'")
    page.get_by_role("link", name="Steer latent 11").click()
    page.locator("#name", has_text="Latent 11").wait_for()
    page.close()
    assert answer(f"{url}report/../export/cfg.json")[0] == 404
    assert answer(f"{url}report/%2e%2e/export/cfg.json")[0] == 404
    assert answer(url, Host="elsewhere.example")[0] == 400  # a name that points here
    for page in ("docs", "redoc", "openapi.json"):
        assert "swagger" not in answer(f"{url}{page}")[2].lower()

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not [name for name in os.listdir(tmp_path / "tmp") if name.startswith("revelio")]
    assert not (tmp_path / "left").exists()
