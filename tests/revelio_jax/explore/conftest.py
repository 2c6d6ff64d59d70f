"""Explorers of the miniatures with small random SAEs, served on this machine, and a browser."""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import io
import pathlib
import threading

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import torch

from revelio_jax.config import Config, ExtractConfig, ModelConfig, SteerConfig
from revelio_jax.explore import requests
from revelio_jax.explore.backend import Backend, load
from revelio_jax.explore.catalog import load_catalog
from revelio_jax.interpret.latents import results
from revelio_jax.sae_folder.reader import WEIGHTS
from revelio_jax.steering.hub import write_sae
from revelio_jax.steering.sae import Sae
from tests.helpers import ROOT

LATENTS, K = 48, 6
SITES = {  # hook point -> miniature, width of the activations
    "clip.layer.2": ("sd", 128),
    "unet.up_blocks.1": ("sd", 64),
    "t5.block.2": ("flux", 128),
    "flux.double.0.text": ("flux", 192),
}
EXAMPLES = ["flat emoji of tiger", "glossy 3d emoji of red apple"]

torch.set_num_threads(1)  # more threads are slower on models this small


@pytest.fixture(scope="session")
def write_run():
    """``write_run(folder, site)`` writes a run with a random SAE and returns its config."""

    def write(folder: pathlib.Path, site: str) -> Config:
        family, d = SITES[site]
        generator = torch.Generator().manual_seed(d)
        W_dec_FD = torch.nn.functional.normalize(torch.randn(LATENTS, d, generator=generator), dim=1)
        model = f"extract/miniature/{family}"
        metadata = {"site": site, "model_id": model, "family": family, "value": "output"}
        sae = Sae(W_dec_FD.T.contiguous(), torch.zeros(LATENTS), W_dec_FD, torch.zeros(d), K, metadata)
        (folder / "export").mkdir(parents=True)
        write_sae(sae, folder / "export")
        return Config(
            model=ModelConfig(id=model, family=family, device="cpu"),
            extract=ExtractConfig(store=str(folder / "store")),
            run=str(folder),
            steer=SteerConfig(rule="contrast", pooled=True, steps=3, guidance=2.5, height=32, width=32),
        )

    return write


@pytest.fixture(scope="session")
def save_results():
    """``save_results(run)`` writes results of interpreting and tags for a run."""

    def save(run: pathlib.Path) -> None:
        words = ["zebra, stripes" if i == 7 else "<|endoftext|>, tail" if i == 8 else "" for i in range(LATENTS)]
        numbers = pyarrow.array(range(LATENTS), pyarrow.int32())
        latents = pyarrow.table(
            {
                "latent": numbers,
                "rows": [100] * LATENTS,
                "samples": [10] * LATENTS,
                "frequency": [0.01] * LATENTS,
                "mean": [5.0] * LATENTS,
                "max": [20.0] * LATENTS,
                "spread": [0.1] * LATENTS,
                "words": words,
            }
        )
        columns = ("latent", "sample", "kind", "stratum", "rank", "position", "timestep", "value", "quantile")
        samples = pyarrow.table({name: [] for name in columns})
        samples = samples.cast(pyarrow.schema([(n, "string" if n == "kind" else "int32") for n in columns]))
        empty = np.full((LATENTS, 1), -1, np.int32)
        nearest = empty.copy()
        nearest[7] = 8
        score = np.full((LATENTS, 1), 0.5, np.float32)
        arrays = {"coactive": empty, "coactive_score": score, "nearest": nearest, "nearest_cosine": score}
        sha256 = hashlib.sha256((run / "export" / WEIGHTS).read_bytes()).hexdigest()
        facts = {
            "latents": LATENTS,
            "labels": [],
            "kind": "text",
            "sae": {"folder": str(run / "export"), "sha256": sha256},
            "store": {"location": str(run / "gone"), "fingerprint": ""},
        }
        tables = {"latents": latents, "strata": latents.slice(0, 0), "samples": samples}
        saved = results.save(results.folder_of(str(run)), facts, tables, arrays)
        tags = {
            "latent": [9, 9],
            "label": ["orchard", "<b>red fruit</b>"],
            "granularity": ["scene", "object"],
        }
        tags = pyarrow.table(tags | {"score": [0.2, 0.9], "model": ["test", "test"]})
        pyarrow.parquet.write_table(tags, saved.folder / "tags.parquet")

    return save


@dataclasses.dataclass(frozen=True)
class Explorer:
    """A served explorer: its address, backend and config."""

    url: str
    backend: Backend
    config: Config

    @property
    def run(self) -> pathlib.Path:
        return pathlib.Path(self.config.run)


@pytest.fixture(scope="session")
def explorer(tmp_path_factory, write_run, save_results):
    """``explorer(site)`` serves the explorer of a hook point, once per session and set of flags.

    ``allowed`` and ``root`` are the flags --allow_host and --root_path.
    """
    pytest.importorskip("gradio", reason="gradio is not installed")
    from revelio_jax.explore import app, server
    from tests.helpers import page_server

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(ROOT))

        @functools.cache
        def get(site: str, allowed: tuple[str, ...] = (), root: str = "") -> Explorer:
            config = write_run(tmp_path_factory.mktemp("runs") / site, site)
            run = pathlib.Path(config.run)
            if site == "clip.layer.2":
                save_results(run)
            backend = load(config, None)
            page = app.build(backend, load_catalog(config, run / "export", LATENTS), run / "report", EXAMPLES)
            served = server.application(page, run / "report", "127.0.0.1", allowed, root)
            port = stack.enter_context(page_server.serving(served))
            return Explorer(f"http://127.0.0.1:{port}/", backend, config)

        yield get


def decode(url: str) -> np.ndarray:
    """Return the pixels of an image in a data URL."""
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


class ExplorerPage:
    """The page in the browser, with the actions of a user."""

    def __init__(self, visited, explorer: Explorer):
        self.visited, self.page, self.explorer, self.backend = visited, visited.page, explorer, explorer.backend
        self.page.get_by_role("button", name="Draw", exact=True).wait_for()
        self.page.locator("#status .hint").wait_for()

    def request(self, prompt: str):
        """Return the request of a prompt with all other fields at their defaults."""
        steer = self.explorer.config.steer
        return requests.sampling(prompt, 0, steer.steps, steer.guidance, (steer.height, steer.width))

    def message(self) -> str:
        return self.page.locator("#message").inner_text().strip()

    def wait_for_message(self, text: str) -> None:
        self.page.locator("#message .message", has_text=text).wait_for()

    def status(self) -> str:
        return self.page.locator("#status").inner_text().strip()

    def wait_for_status(self, text: str) -> str:
        self.page.locator("#status .hint", has_text=text).wait_for()
        return self.status()

    def fill(self, name: str, text: str) -> None:
        """Fill a field that has just appeared; Gradio may reset it within milliseconds."""
        field = self.page.locator(f"#{name} textarea, #{name} input").first
        while field.input_value() != text:
            field.fill(text)
            self.page.wait_for_timeout(300)

    def draw(self, prompt: str) -> None:
        self.page.locator("#prompt textarea").fill(prompt)
        self.page.locator("#draw").click()

    def draw_and_wait(self, prompt: str) -> None:
        self.draw(prompt)
        self.page.locator(f'#plain img[alt="Plain: {prompt}"]').wait_for()

    def pixels(self, name: str) -> np.ndarray:
        """Return the pixels of an image in the page."""
        return decode(self.page.locator(f"#{name} img").get_attribute("src"))

    def steered_url(self) -> str:
        """Return the data URL of the steered image."""
        return self.page.locator("#steered img").get_attribute("src")

    def wait_for_new_image(self, old_url: str) -> None:
        """Wait until the steered image is not the old one."""
        differs = "old => document.querySelector('#steered img')?.src != old"
        self.page.wait_for_function(differs, arg=old_url)

    def wait_for_event(self, event: threading.Event) -> None:
        while not event.is_set():  # this thread must serve the browser's requests
            self.page.wait_for_timeout(20)

    def search(self, text: str) -> None:
        self.page.locator("#query textarea, #query input").first.fill(text)
        self.page.locator("#find").click()

    def open(self, latent: int) -> None:
        """Open a latent by searching for its number."""
        self.page.get_by_role("tab", name="Search").click()
        self.search(str(latent))
        self.page.locator(f'#results [data-latent="{latent}"]').click()
        self.page.locator("#name", has_text=f"Latent {latent}").wait_for()

    def strength(self, row: int, value: float) -> None:
        """Type a strength in the field next to its slider."""
        field = self.page.locator(f"#strength-{row} input[type=number]")
        field.fill(str(value))
        field.press("Enter")
        field.blur()

    def python(self) -> str:
        """Return the Python code that the Copy button copies."""
        if not self.page.locator("#code .cm-content").is_visible():
            self.page.get_by_role("button", name="Python code for this image").click()
        self.page.locator("#code").get_by_title("Copy").click()
        return self.page.evaluate("navigator.clipboard.readText()")


STREAMS = ("/gradio_api/queue/data", "/gradio_api/heartbeat")  # they end with an error when a page is closed


@pytest.fixture
def open_page(visit, explorer):
    """``open_page(site, query="", **context)`` opens the explorer of a hook point in the browser."""
    opened = []

    def get(site: str, query: str = "", **context) -> ExplorerPage:
        context.setdefault("permissions", ["clipboard-read", "clipboard-write"])
        opened.append(ExplorerPage(visit(explorer(site).url + query, **context), explorer(site)))
        return opened[-1]

    yield get
    for ui in opened:
        ui.page.close()
        ui.visited.errors[:] = [e for e in ui.visited.errors if not any(url in e for url in STREAMS)]
