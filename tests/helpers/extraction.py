"""Fixtures and functions for tests of extraction: tiny pipelines, inputs, and the command itself."""

import csv
import functools
import json
import os
import pathlib
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from extract import run
from revelio_jax.errors import report_errors
from revelio_jax.pipelines.loading import TextEncoder
from revelio_jax.store import open_store
from tests.helpers.pipelines import CLASSES, LAYERS, WIDTH, dit, fitted, flux, make_clip, sd, sdxl, t5, vae  # noqa: F401

# Models this small are faster with one thread, here and in the processes that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def bert() -> TextEncoder:
    """A BERT of eight words: a text encoder without a pipeline."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "red"])}
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    return TextEncoder("encoder", model, transformers.BertTokenizer(vocab=words, model_max_length=12), "text")


@pytest.fixture(scope="session")
def sd_folder(folder) -> pathlib.Path:
    return folder("sd")


@pytest.fixture(scope="session")
def folder(tmp_path_factory, request):
    """A function that saves the pipeline of a family and returns its folder."""

    @functools.cache
    def save(family: str) -> pathlib.Path:
        path = tmp_path_factory.mktemp("pipelines") / family
        pipe = request.getfixturevalue(family)
        pipe.save_pretrained(path)
        if family == "dit":  # diffusers reads class names from here, but does not write them
            index = json.loads((path / "model_index.json").read_text())
            index["id2label"] = CLASSES
            (path / "model_index.json").write_text(json.dumps(index))
        return path

    return save


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
    """A csv file of 10 labeled prompts of different lengths, with the empty prompt first."""
    path = tmp_path / "prompts.csv"
    rows = [["prompt", "style"], ["", "none"]]
    rows += [[" ".join(["cat"] * n), f"style {n % 2}"] for n in range(1, 10)]
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> pathlib.Path:
    """Five images of several sizes and modes in folders of two labels; the second one cannot be decoded."""
    path = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for name, size, mode in [
        ("cat/a.png", (12, 8), "RGB"),
        ("cat/c.png", (8, 8), "L"),
        ("dog/a.jpg", (9, 20), "RGB"),
        ("dog/b.png", (30, 30), "RGBA"),
    ]:
        (path / name).parent.mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (*size, 3), np.uint8)
        PIL.Image.fromarray(pixels).convert(mode).save(path / name)
    (path / "cat/b.png").write_bytes((path / "cat/a.png").read_bytes()[:60])
    (path / "cat/notes.txt").write_text("not an image")
    return path


@pytest.fixture(scope="session")
def read_rows():
    """A function that reads a hook point: activations [rows, d] and index [rows, (sample, timestep, position)]."""

    def read(location, name: str = ""):
        site = open_store(str(location)).site(name)
        values = [site.read(*chunk) for chunk in site.chunks]
        index = [
            np.stack([site.read_index(key, *chunk) for key in ("sample", "timestep", "position")], 1)
            for chunk in site.chunks
        ]
        return np.concatenate(values), np.concatenate(index)

    return read


@pytest.fixture
def called_modules():
    """A list to which every module is appended when it is called."""
    modules = []
    handle = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, _: modules.append(module))
    yield modules
    handle.remove()


CONFIG = """
from revelio_jax.config import default

def get_config():
    c = default()
    c.model.id = {model!r}
    c.extract.prompts = {prompts!r}
    c.extract.sites = ("clip.layer.1", "clip.layer.0")
    c.extract.store = {store!r}
    c.extract.batch_size = 2
    c.extract.shard_samples = 3
    c.extract.chunk_rows = 8
    return c
"""


@pytest.fixture
def text_config(tmp_path, sd_folder, prompts) -> pathlib.Path:
    """A config file of mode text: two hook points of CLIP, ten prompts in four shards, the store in tmp_path/store."""
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(model=str(sd_folder), prompts=str(prompts), store=str(tmp_path / "store")))
    return path


def flags_of(**fields) -> list[str]:
    """Return the flags of config fields: extract__store=x is --config.extract.store=x."""
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


def run_extract(config, **fields) -> None:
    """Run the extraction command in this process."""
    with report_errors():
        run.main(["--config", str(config), *flags_of(**fields)])


def command(config, **fields) -> list[str]:
    """Return the command line that runs an extraction in another process."""
    return [sys.executable, "-m", "extract.run", "--config", str(config), *flags_of(**fields)]


def refusal(capsys, config, **fields) -> str:
    """Run a command that must exit with status 2; return its one line on stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run_extract(config, **fields)
    assert exit.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def read_files(folder) -> dict[str, bytes]:
    """Return the bytes of every file of a folder, by path in it."""
    paths = pathlib.Path(folder).rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}
