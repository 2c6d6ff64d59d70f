"""Embed the samples of a store with an independent model, for the monosemanticity score. Uses torch.

    python -m revelio_jax.interpret.embeddings --config FILE --config.interpret.embedder=FOLDER

revelio interpret runs this command if the run has no embeddings of this store by this model. It writes
runs/<name>/embeddings.safetensors. Images are embedded as the model under interpretation saw them, texts as whole
prompts.
"""

import pathlib
import sys
import typing
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from revelio_jax.benchmark.embedders import BATCH, open_embedder
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.interpret.embeddings import embedding_file, process
from revelio_jax.interpret.latents import layout
from revelio_jax.interpret.sample_images import open_images
from revelio_jax.pipelines.loading import quiet
from revelio_jax.store import Store, open_store

FLAGS = {"errors_on_stdout": (False, "print errors to standard output, for the process that runs this command")}


def embed(config: Config) -> None:
    """Write the embeddings. Raise InputError before the model is loaded if the store has neither images nor prompts."""
    options = config.interpret
    if not options.embedder or not config.run:
        raise InputError(f"{embedding_file.FIELD} and config.run must be set")
    entries = config.data.stores or (f"1:{config.extract.store}",)
    store = open_store(entries[0].partition(":")[2])
    site = config.data.site or store.site_names[0]
    kind: typing.Literal["image", "text"] = "image" if layout.is_image(site) else "text"
    read = _reader(store, config, kind)
    model = embedding_file.fingerprint(options.embedder)
    folder = embedding_file.model_folder(options.embedder)
    embedder = open_embedder(folder, kind, config.model.device, embedding_file.FIELD)
    rows: list[np.ndarray | None] = []
    for start in tqdm(range(0, store.manifest["samples"], BATCH), "embed", unit="batch", dynamic_ncols=True):
        samples = [read(number) for number in range(start, min(start + BATCH, store.manifest["samples"]))]
        known = [sample for sample in samples if sample is not None]
        embedded = iter(embedder(known) if known else ())
        rows += [None if sample is None else next(embedded) for sample in samples]
    width = next((len(row) for row in rows if row is not None), 0)
    if not width:
        raise InputError(
            f"store {store.location} has no {kind} that can be read, which {embedding_file.FIELD} requires"
        )
    missing = np.full(width, np.nan, np.float32)
    embedding_NE = np.stack([missing if row is None else row for row in rows])
    embedding_file.write(pathlib.Path(config.run, embedding_file.NAME), embedding_NE, store.fingerprint, model)


def _reader(store: Store, config: Config, kind: str) -> Callable[[int], typing.Any]:
    """Return a function from a sample number to its image or prompt; None for an image that cannot be decoded."""
    if kind == "image":
        images = open_images(store, config.extract)
        if images is None:
            raise InputError(
                f"store {store.location} has no images, which {embedding_file.FIELD} requires; extract it again with "
                "config.extract.save_images=True"
            )
        return images
    if "prompt" not in store.schema.names:
        raise InputError(f"store {store.location} has no column 'prompt', which {embedding_file.FIELD} requires")
    prompts = store.table(["prompt"])["prompt"]
    return lambda number: str(prompts[number].as_py() or "")


def main(argv: Sequence[str]) -> None:
    config, flags = parse([process.MODULE, *argv], __doc__, **FLAGS)
    quiet()
    try:
        embed(config)
    except InputError as error:
        if not flags["errors_on_stdout"]:
            raise
        print(f"{process.ERROR}{error}")
        sys.exit(2)
