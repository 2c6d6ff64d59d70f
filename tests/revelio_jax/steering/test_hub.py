"""The hub: the real client against a local server that implements the endpoints it uses."""

import base64
import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import types
import urllib.parse

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file

from revelio_jax.errors import InputError
from revelio_jax.steering import Steerer
from revelio_jax.steering.sae import load_sae
from tests.helpers import ROOT

SAES = pathlib.Path(__file__).parent / "saes"
MINIATURE = ROOT / "extract" / "miniature" / "sd"
COMMIT = "c0ffee" + "0" * 34
LICENSES = ("mit", "cc-by-4.0", "unknown")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves repositories in memory: ``hub.repos`` maps a name to {path: bytes}; ``hub.requests`` are recorded."""

    def do_HEAD(self):
        self._get()

    def do_GET(self):
        self._get()

    def _get(self):
        hub = self.server.hub
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            return self._json({"name": "user", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        kind, name, rest = self._parts(path.removeprefix("/api/models"))
        if name not in hub.repos:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if name in hub.gated:
            return self._json({"error": "gated"}, 403, {"X-Error-Code": "GatedRepo"})
        if rest[1:2] not in (["main"], [COMMIT]):
            return self._json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        files = hub.repos[name]
        if kind == "resolve":
            return self._file(files.get("/".join(rest[2:])))
        if kind == "tree":
            entries = [{"type": "file", "path": p, "size": len(b), "oid": _oid(b)} for p, b in files.items()]
            return self._json(entries)
        return self._json({"id": name, "sha": COMMIT, "siblings": [{"rfilename": p} for p in files]})

    def do_POST(self):
        hub = self.server.hub
        path = urllib.parse.urlsplit(self.path).path
        hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":  # the hub checks more fields
            front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            wrong = [] if front["license"] in LICENSES else [{"message": '"license" must be one of a list'}]
            return self._json({"errors": wrong, "warnings": []}, 400 if wrong else 200)
        if path == "/api/repos/create":
            settings = json.loads(body)
            hub.repos.setdefault("user/" + settings["name"].removeprefix("user/"), {})
            hub.private = settings.get("private", settings.get("visibility") == "private")  # by version
            return self._json({"url": f"{constants.ENDPOINT}/user/{settings['name']}"})
        kind, name, _ = self._parts(path.removeprefix("/api/models"))
        if kind == "preupload":
            files = json.loads(body)["files"]
            return self._json({"files": [f | {"uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if kind == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{constants.ENDPOINT}/{name}/commit/{COMMIT}"
            return self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self._json({"error": "unknown"}, 404)

    def _parts(self, path: str) -> tuple[str, str, list[str]]:
        """Return the kind of the endpoint, the name of the repository, and the parts after it."""
        owner, name, *rest = path.strip("/").split("/")
        return (rest or [""])[0], f"{owner}/{name}", rest or ["", "main"]

    def _file(self, content: bytes | None):
        if content is None:
            return self._json({"error": "no file"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self._send(content, 200, {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": COMMIT})

    def _json(self, value: object, status: int = 200, headers: dict | None = None):
        self._send(json.dumps(value).encode(), status, (headers or {}) | {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Start an empty local hub that the client uses instead of the real one."""
    hub = types.SimpleNamespace(repos={}, gated=set(), requests=[], token=None, private=None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    # The client reads HF_ENDPOINT, HF_HUB_CACHE and the others only when it is imported.
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub.stop = lambda: (server.shutdown(), server.server_close())
    yield hub
    with contextlib.suppress(OSError):
        hub.stop()
    thread.join()


def put(hub, name: str, folder: pathlib.Path, prefix: str = "") -> None:
    files = {prefix + str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    hub.repos.setdefault(name, {}).update(files)


def fetched(hub) -> set[str]:
    """Return the files whose content was requested."""
    return {
        line.rpartition(f"/{COMMIT}/")[2] for line in hub.requests if line.startswith("GET") and "/resolve/" in line
    }


def refused(*arguments, **options) -> str:
    with pytest.raises(InputError) as error:
        Steerer.from_pretrained(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pushed_sae_loads_again_and_no_other_file_is_fetched(hub, sae_folder):
    steerer = Steerer.from_pretrained(sae_folder)
    hub.token = "secret"
    address = steerer.push_to_hub("user/name", private=True, license="cc-by-4.0", token="secret")
    assert address.startswith(constants.ENDPOINT)
    assert hub.private is True
    assert set(hub.repos["user/name"]) == {"cfg.json", "sae_weights.safetensors", "README.md"}
    hub.repos["user/name"] |= {"pytorch_model.bin": b"pickle", "steering.py": b"import os", "sae.pt": b""}
    back = Steerer.from_pretrained("user/name")
    assert fetched(hub) == {"cfg.json", "sae_weights.safetensors", "README.md"}
    assert back.site == steerer.site
    assert back.sae.k == steerer.sae.k
    for name in ("W_enc_DF", "b_enc_F", "W_dec_FD", "b_dec_D"):
        torch.testing.assert_close(getattr(back.sae, name), getattr(steerer.sae, name), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["sae_lens_jumprelu", "sae_lens_standard", "sae_lens_topk_rescaled"])
def test_an_sae_of_another_library_is_pushed_in_this_layout(hub, name):
    theirs = load_file(SAES / name / "theirs.safetensors")
    Steerer.from_pretrained(SAES / name, site="clip.layer.2").push_to_hub("user/name")
    back = Steerer.from_pretrained("user/name").sae  # its metadata names the hook point now
    torch.testing.assert_close(back.codes(theirs["x"]), theirs["codes"], atol=1e-4, rtol=1e-4)


def test_only_the_chosen_subfolder_is_fetched(hub):
    put(hub, "user/coders", SAES / "sparsify")
    assert "pass one of them as subfolder=: layers.1, layers.2" in refused("user/coders", site="clip.layer.2")
    assert not [file for file in fetched(hub) if file.endswith(".safetensors")]
    Steerer.from_pretrained("user/coders", subfolder="layers.2", site="clip.layer.2")
    assert [f for f in fetched(hub) if f.endswith(".safetensors")] == ["layers.2/sae.safetensors"]


def test_the_revision_is_fetched(hub, sae_folder):
    put(hub, "user/name", sae_folder)
    assert Steerer.from_pretrained("user/name", revision=COMMIT).site
    assert "unknown revision 'v9'" in refused("user/name", revision="v9")
    assert "is not a hub id" in refused(sae_folder, revision="v9")


def test_a_failed_download_is_one_line(hub, sae_folder):
    assert "hf auth login" in refused("user/absent")
    put(hub, "user/gated", sae_folder)
    hub.gated.add("user/gated")
    assert "accept its license" in refused("user/gated")
    put(hub, "user/name", sae_folder)
    Steerer.from_pretrained("user/name")
    hub.stop()
    assert Steerer.from_pretrained("user/name").site  # cached files need no hub
    assert "pass the folder of a downloaded copy" in refused("user/other")


def test_a_local_folder_comes_before_the_hub(hub, sae_folder, monkeypatch):
    monkeypatch.chdir(sae_folder.parent)
    (sae_folder.parent / "user").mkdir()
    sae_folder.rename("user/name")
    assert Steerer.from_pretrained("user/name").site
    assert not hub.requests


def test_a_failed_upload_is_one_line(hub, sae_folder):
    steerer = Steerer.from_pretrained(sae_folder)
    hub.token = "secret"
    for name, message in {"user/name": "hf auth login", "name": "owner/name", "a/b/c": "owner/name"}.items():
        with pytest.raises(InputError, match=message) as error:
            steerer.push_to_hub(name)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="must be one of a list"):
        steerer.push_to_hub("user/name", license="free", token="secret")


@pytest.mark.slow
def test_the_card_is_valid_and_its_code_runs(hub, sae_folder, tmp_path, monkeypatch):
    config = json.loads((sae_folder / "cfg.json").read_text())
    config["metadata"] |= {"model_id": "owner/sd", "k": 8, "positions": "all"}
    (sae_folder / "cfg.json").write_text(json.dumps(config))
    Steerer.from_pretrained(sae_folder).push_to_hub("user/name", license="mit")
    card = hub.repos["user/name"]["README.md"].decode()
    _, front, body = card.split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["base_model"], front["license"]) == ("owner/sd", "mit")
    assert huggingface_hub.ModelCard(card).data.base_model == "owner/sd"
    for fact in ("`clip.layer.2`", "at most 8 active", "not evaluated"):
        assert fact in body
    code = body.split("```python\n")[1].split("```")[0]
    on_a_gpu = '"owner/sd", dtype=torch.float16).to("cuda")'
    assert on_a_gpu in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace(on_a_gpu, f"{str(MINIATURE)!r}, dtype=torch.float32)"), {})
    assert Image.open("image.png").size == (32, 32)


def test_a_repository_of_pickles_says_how_to_convert_them(hub):
    hub.repos["user/name"] = {"config.json": b"{}", "final/state_dict.pth": b"pickle"}
    message = refused("user/name", subfolder="final", site="clip.layer.2")
    assert "user/name/final/sae_weights.safetensors is missing, and final/state_dict.pth is not opened" in message
    assert "weights_only=True" in message
    assert "final/state_dict.pth" not in fetched(hub)


def test_a_cached_snapshot_is_read_as_a_folder(hub, sae_folder):
    """The files of a snapshot are links to the cache's blobs."""
    put(hub, "user/name", sae_folder)
    snapshot = huggingface_hub.snapshot_download("user/name")
    assert load_sae(snapshot).n_latents == 64
