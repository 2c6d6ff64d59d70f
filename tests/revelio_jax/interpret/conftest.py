"""Stores of pictures with labels, and SAE folders made by hand."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from revelio_jax.config import Config, Extract, Interpret, Sae, Train
from revelio_jax.store import SitePlan, StorePlan, StoreWriter


@pytest.fixture(scope="session")
def write_samples():
    """A function that writes a store: its rows, what they are, and the columns of its samples."""

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
            gone = {"skipped": skipped[skipped // shard_samples == i]}
            writer.write_shard(i, {site: {"activations": activations[here]} | arrays | gone})
        writer.finish()
        return str(location)

    return write


@pytest.fixture(scope="session")
def write_sae():
    """A function that writes an SAE folder as export.py does; returns the folder."""

    def write(folder, W_enc, b_enc, W_dec, b_dec, k=None, threshold=None, **metadata):
        tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        architecture = "topk" if k else "standard" if threshold is None else "jumprelu"
        cfg = {"architecture": architecture, "d_in": W_enc.shape[0], "d_sae": W_enc.shape[1]}
        if k:
            cfg["k"] = k
        if threshold is not None:
            tensors["threshold"] = threshold
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cfg.json").write_text(json.dumps(cfg | {"metadata": metadata}))
        tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
        save_file(tensors, folder / "sae_weights.safetensors")
        return str(folder)

    return write


@pytest.fixture(scope="session")
def interpreted():
    """A function that changes fields of config.interpret, and of other sections by ``section=dict``."""

    def change(config: Config, **fields) -> Config:
        for section in ("train", "extract", "sae", "model"):
            if section in fields:
                part = dataclasses.replace(getattr(config, section), **fields.pop(section))
                config = dataclasses.replace(config, **{section: part})
        return dataclasses.replace(config, interpret=dataclasses.replace(config.interpret, **fields))

    return change


TIMESTEPS, GRID, CLASSES, STYLES = (1, 501), (4, 4), 3, 2
PLANTED, NOISE = 0, 1
"""Latents: one that knows class 0, one that knows of no label."""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, write_samples, write_sae) -> Config:
    """64 pictures of two timesteps and 4 x 4 positions, with an SAE of 6 latents; whole numbers everywhere.

    Latent PLANTED fires on the upper left corner of pictures of class 0, most at timestep 501; latent 2 on
    the lower row of style "b"; latent NOISE anywhere; 3 copies the planted one, negated; 4, 5 never fire.
    """
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
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
        {"prompt": f"picture {i}", "kind": f"class {kind[i]}", "style": "ab"[style[i]] if i % 8 else ""}
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
        extract=Extract(store=store),
        sae=Sae(k=4),
        train=Train(run=str(folder / "run"), site="unet.mid_block"),
        interpret=Interpret(batch_size=100),
    )
