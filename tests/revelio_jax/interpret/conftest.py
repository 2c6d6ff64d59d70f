"""Stores of images and texts, and SAE folders with planted weights."""

import dataclasses
import io
import json

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

from revelio_jax.config import Config, DataConfig, ExtractConfig, InterpretConfig, SaeConfig
from revelio_jax.sae_folder.card import SAE_LENS_VERSION
from revelio_jax.store import SitePlan, StorePlan, StoreWriter, open_store
from tests.helpers.chat_server import server  # noqa: F401


@pytest.fixture(scope="session")
def write_samples():
    """A function that writes a store from its rows, their index and the columns of its samples."""

    def write(location, site, activations, sample, position, timestep, samples, shard_samples=8, **facts):
        shard = np.asarray(sample) // shard_samples
        shards = range(-(-len(samples) // shard_samples))
        plan = SitePlan(site, activations.shape[1], tuple(int((shard == i).sum()) for i in shards))
        dtype = facts.pop("dtype", "float32")
        skipped = np.asarray(facts.pop("skipped", []), np.int32)
        plan = StorePlan((plan,), dtype, facts.pop("chunk_rows", 8), shard_samples, len(samples), facts)
        writer = StoreWriter(str(location), plan, [{"id": i} | row for i, row in enumerate(samples)])
        index = {"sample": sample, "position": position, "timestep": timestep}
        for i in shards:
            here = shard == i
            arrays = {name: np.asarray(array, np.int32)[here] for name, array in index.items()}
            skipped_here = {"skipped": skipped[skipped // shard_samples == i]}
            writer.write_shard(i, {site: {"activations": activations[here]} | arrays | skipped_here})
        writer.finish()
        return str(location)

    return write


@pytest.fixture(scope="session")
def write_sae():
    """A function that writes an SAE folder in the format of export.py and returns its path."""

    def write(folder, W_enc, b_enc, W_dec, b_dec, k=None, threshold=None, **metadata):
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        architecture = "topk" if k else "standard" if threshold is None else "jumprelu"
        cfg = {"architecture": architecture, "d_in": W_enc.shape[0], "d_sae": W_enc.shape[1]}
        if k:
            cfg["k"] = k
        if threshold is not None:
            tensors["threshold"] = threshold
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cfg.json").write_text(
            json.dumps(cfg | {"metadata": {"sae_lens_version": SAE_LENS_VERSION} | metadata})
        )
        tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        save_file(tensors, folder / "sae_weights.safetensors")
        return str(folder)

    return write


@pytest.fixture(scope="session")
def with_fields():
    """A function that changes the run, fields of config.interpret and, by ``section=dict``, of other sections."""

    def change(config: Config, **fields) -> Config:
        config = dataclasses.replace(config, run=fields.pop("run", config.run))
        for section in ("extract", "sae", "model", "tags"):
            if section in fields:
                part = dataclasses.replace(getattr(config, section), **fields.pop(section))
                config = dataclasses.replace(config, **{section: part})
        return dataclasses.replace(config, interpret=dataclasses.replace(config.interpret, **fields))

    return change


TIMESTEPS, CLASSES, STYLES = (1, 501), 3, 2
PLANTED, NOISE = 0, 1
"""Latents: one fires only on class 0, the other independently of all labels."""


@pytest.fixture(scope="session")
def image_config(tmp_path_factory, write_samples, write_sae) -> Config:
    """The config of an SAE of 6 latents on 64 images of 4 x 4 positions at two timesteps; all values are integers.

    Latent PLANTED fires in the upper left corner of images of class 0, most at timestep 501. Latent 2 fires in
    the bottom row of images of style "b", latent NOISE anywhere. Latent 3 is the negative of PLANTED; 4 and 5
    never fire. Images are gray; those of class 0 are red in the upper left. They do not show the style.
    """
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("images")
    count = 64
    kind, style = random.integers(0, CLASSES, count), random.integers(0, STYLES, count)
    z = np.zeros((count, len(TIMESTEPS), 16, 4), np.float32)
    for i in np.flatnonzero(kind == 0):
        z[i, :, [0, 1, 4, 5], PLANTED] = random.integers(1, 9, (4, 2))
        z[i, 1, 5, PLANTED] = 16 + random.integers(0, 9)
    z[style == 1, :, 12:, 2] = random.integers(1, 40, ((style == 1).sum(), 2, 4))
    z[..., NOISE] = random.integers(1, 1000, z.shape[:-1]) * (random.random(z.shape[:-1]) < 0.3)
    z[..., 3] = -z[..., PLANTED]
    b_dec = np.array([3, -2, 5, 1], np.float32)
    rows = z.reshape(-1, 4) + b_dec
    sample = np.repeat(np.arange(count), 32)
    timestep = np.tile(np.repeat(TIMESTEPS, 16), count)
    position = np.tile(np.arange(16), 2 * count)
    samples = [
        {"prompt": f"image {i}", "kind": f"class {kind[i]}", "style": "ab"[style[i]] if i % 8 else ""}
        for i in range(count)
    ]
    facts = {"mode": "generate", "height": 32, "width": 32, "timesteps": list(TIMESTEPS), "save_images": True}
    model = {"id": "a/model", "family": "sd", "revision": ""}
    store = write_samples(
        folder / "store",
        "unet.mid_block",
        rows,
        sample,
        position,
        timestep,
        samples,
        extract=facts,
        model=model,
    )
    kvstore = open_store(store).kvstore
    for i in range(count):
        pixels = np.full((32, 32, 3), random.integers(90, 160), np.uint8)
        if kind[i] == 0:
            pixels[:16, :16] = 200, 0, 0
        kvstore.write(f"images/{i:08d}.png", as_png(pixels)).result()
    W = np.concatenate([np.eye(4), np.zeros((4, 2))], axis=1)
    b_enc = np.array([0, 0, 0, 0, -1, -1])
    write_sae(
        folder / "run" / "export",
        W,
        b_enc,
        W.T,
        b_dec,
        k=4,
        site="unet.mid_block",
        model_id="a/model",
        family="sd",
    )
    return Config(
        extract=ExtractConfig(store=store),
        sae=SaeConfig(k=4),
        run=str(folder / "run"),
        data=DataConfig(site="unet.mid_block"),
        interpret=InterpretConfig(batch_size=100),
    )


def as_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


HEART, AFTER_A = 0, 1
"""Latents of texts: one fires on "heart", the other on every word after "a"."""


@pytest.fixture(scope="session")
def text_config(tmp_path_factory, write_samples, write_sae) -> Config:
    """The config of an SAE of 3 latents on 96 prompts, half of which contain "heart".

    The last latent never fires. One prompt contains ``<image>``, a placeholder of multimodal processors.
    """
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("texts")
    samples, rows, index = [], [], []
    for i in range(96):
        words = [f"word{random.integers(20)}" for _ in range(random.integers(3, 8))]
        words[0] = "<image>" if i == 4 else words[0]
        if i % 2 == 0:
            words[random.integers(1, len(words))] = "heart"
        if i % 3 == 0:
            words.insert(random.integers(1, len(words)), "a")
        tokens = ["<|startoftext|>", *(f"{word}</w>" for word in words), "<|endoftext|>"]
        samples.append({"prompt": " ".join(words), "clip.tokens": tokens})
        for position, word in enumerate(["", *words, ""]):
            after_a = position > 1 and words[position - 2] == "a"
            rows.append([10.0 * (word == "heart") + random.random() * (word == "heart"), 5.0 * after_a, 0])
            index.append((i, position, -1))
    sample, position, timestep = np.array(index, np.int32).T
    model = {"id": "a/model", "family": "sd", "revision": ""}
    store = write_samples(
        folder / "store",
        "clip.layer.1",
        np.array(rows, np.float32),
        sample,
        position,
        timestep,
        samples,
        extract={"mode": "text"},
        model=model,
    )
    eye = np.eye(3)
    write_sae(
        folder / "run" / "export",
        eye,
        np.zeros(3),
        eye,
        np.zeros(3),
        k=3,
        site="clip.layer.1",
        model_id="a/model",
        family="sd",
    )
    return Config(
        extract=ExtractConfig(store=store),
        sae=SaeConfig(k=3),
        run=str(folder / "run"),
        data=DataConfig(site="clip.layer.1"),
        interpret=InterpretConfig(batch_size=100),
    )
