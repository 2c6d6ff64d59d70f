"""Stores and interpretation results of any size, made without a model, for tests of the report and the explorer.

Values are random except for latents 0, 1 and 2; see :func:`make`.
"""

import dataclasses
import io
import pathlib

import numpy as np
import PIL.Image
import pyarrow
from safetensors.numpy import save_file

from revelio_jax.interpret.latents import results
from revelio_jax.interpret.latents.results import Results
from revelio_jax.store import SitePlan, Store, StorePlan, StoreWriter, open_store

LABEL, CLASSES = "animal", ("cat", "dog", "emu")
TIMESTEPS = (25, 500)
WORDS = ("apple", "brick", "cloud", "drum", "ember", "fern", "grape", "harp")
D = 4


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of planted data: ``grid`` is the side of an image's map, ``positions`` the length of a text."""

    latents: int = 150
    samples: int = 120
    top: int = 6
    weaker: int = 3
    of_stratum: int = 2
    neighbors: int = 4
    grid: int = 4
    positions: int = 12
    pixels: int = 32


def make_store(
    folder: pathlib.Path, kind: str, size: Size, prompts: list[str] | None = None, images: bool = True
) -> Store:
    """Write a store of ``size.samples`` samples that repeat ``prompts``, each with a class.

    The tokens are the words of the prompt in CLIP's format. Each image is one color with a white corner.
    """
    prompts = prompts or [f"a {cls} beside a {word}" for word in WORDS for cls in CLASSES]
    samples = []
    for i in range(size.samples):
        prompt = prompts[i % len(prompts)]
        row = {"id": i, "prompt": prompt, LABEL: CLASSES[i % len(CLASSES)], "language": ("en", "ar")[i % 2]}
        if kind == "text":
            words = prompt.lower().split()[: size.positions - 2]
            row["clip.tokens"] = ["<|startoftext|>", *(f"{word}</w>" for word in words), "<|endoftext|>"]
        samples.append(row)
    site = "clip.layer.1" if kind == "text" else "unet.mid_block"
    provenance = {"model": {"id": "synthetic", "family": "sd"}, "extract": {"mode": "text"}, "input": {}}
    if kind == "image":
        provenance["extract"] = {"mode": "generate", "save_images": images, "height": size.pixels}
        provenance["extract"]["width"] = size.pixels
    plan = StorePlan((SitePlan(site, D, (len(samples),)),), "float32", 32, len(samples), len(samples), provenance)
    writer = StoreWriter(str(folder), plan, samples)
    rows = np.arange(len(samples), dtype=np.int32)
    zeros = np.zeros_like(rows)
    activations = np.ones((len(samples), D), np.float32)
    arrays = {"activations": activations, "sample": rows, "position": zeros, "timestep": zeros}
    writer.write_shard(0, {site: arrays})
    writer.finish()
    store = open_store(str(folder))
    if kind == "image" and images:
        for i in range(len(samples)):
            store.kvstore.write(f"images/{i:08d}.png", _png(i, size.pixels)).result()
    return store


def make(run: pathlib.Path, store: Store, kind: str, size: Size, stratum: str = "timestep", seed: int = 0) -> Results:
    """Write results on ``store``: latent 0 fires most, only on "heart"; 1 is dead; 2 is purest, on cats."""
    random = np.random.default_rng(seed)
    n, site = size.latents, store.site_names[0]
    positions = size.positions if kind == "text" else size.grid**2
    strata = [str(t) for t in TIMESTEPS] if stratum == "timestep" else ["ar", "en"]
    if stratum == "":
        strata = []
    alive = np.ones(n, bool)
    alive[1] = False
    rows = np.where(alive, (10 ** random.uniform(1, 4, n)).astype(np.int64), 0)
    rows[0] = 90_000
    maximum = np.where(alive, random.uniform(5, 20, n), 0).astype(np.float32)
    measured = np.where(alive, random.integers(3, 10, n) / 10, np.nan)
    measured[2] = 1.0
    majority = np.where(alive, random.choice(CLASSES, n), None)
    majority[2] = "cat"
    words = np.where(alive, [f"{a}, {b}" for a, b in random.choice(WORDS, (n, 2))], "")
    words[0] = "heart"

    def of_label(purity, majority):
        return {
            f"{LABEL}.sigma": pyarrow.array((1 - purity).astype(np.float32), from_pandas=True),
            f"{LABEL}.entropy": pyarrow.array((2 - 2 * purity).astype(np.float32), from_pandas=True),
            f"{LABEL}.purity": pyarrow.array(purity.astype(np.float32), from_pandas=True),
            f"{LABEL}.majority": pyarrow.array(majority.tolist(), pyarrow.string()),
        }

    latents = {
        "latent": np.arange(n, dtype=np.int32),
        "rows": rows,
        "samples": np.minimum(rows, size.samples),
        "frequency": rows / 100_000,
        "mean": maximum / 2,
        "max": maximum,
        "spread": np.where(alive, random.uniform(0.05, 0.5, n), 0).astype(np.float32),
        "words": pyarrow.array(words.tolist() if kind == "text" else [""] * n, pyarrow.string()),
        **of_label(measured, majority),
    }
    count = n * len(strata)
    each = np.repeat(np.arange(n, dtype=np.int32), len(strata))
    by_stratum = {
        "latent": each,
        "stratum": pyarrow.array(np.tile(strata, n).tolist(), pyarrow.string()),
        "rows": rows[each] // max(len(strata), 1),
        "samples": np.minimum(rows[each], size.samples // 2),
        "mean": maximum[each] / 2,
        "max": maximum[each],
        "spread": np.zeros(count, np.float32),
        **of_label(measured[each], majority[each]),
    }
    kept = _samples(random, size, alive, maximum, positions, strata, kind)
    near = {
        name: np.where(alive[:, None], random.integers(2, n, (n, size.neighbors)), -1).astype(np.int32)
        for name in ("coactive", "nearest")
    }
    score = np.sort(random.random((n, size.neighbors)).astype(np.float32))[:, ::-1]
    cells = [1, positions] if kind == "text" else [size.grid, size.grid]
    arrays = {
        "histogram": np.where(alive[:, None], random.integers(0, 90, (n, 16)), 0).astype(np.int64),
        "profile": _profiles(random, n, size.top, positions),
        **near,
        "coactive_score": score,
        "nearest_cosine": score,
        "drawn": np.arange(8, dtype=np.int32),
        "fires": random.random((n, 8)) < 0.3,
    }
    mean = {"mean": 0.6, "low": 0.55, "high": 0.65, "latents": int(alive.sum())}
    chance = {"sigma": 0.8, "entropy": 1.4, "purity": 0.45}
    facts = {
        "name": run.name,
        "site": site,
        "model": "synthetic",
        "family": "sd",
        "mode": "text" if kind == "text" else "generate",
        "timesteps": list(TIMESTEPS) if kind == "image" else [],
        "store": {"location": store.location, "fingerprint": store.fingerprint},
        "images": "",
        "sae": {"folder": str(run / "export"), "sha256": "0" * 64, "architecture": "topk"},
        "d": D,
        "latents": n,
        "k": 8,
        "rows": 100_000,
        "samples": size.samples,
        "kind": kind,
        "tokens": "clip.tokens" if kind == "text" else None,
        "positions": positions,
        "grid": [size.grid, size.grid] if kind == "image" else None,
        "cells": cells,
        "stratum": {"column": stratum if strata else "", "values": strata},
        "labels": [LABEL],
        "measures": {},
        "purity": {
            LABEL: {
                "classes": len(CLASSES),
                "samples": size.samples,
                "strongest": min(10, size.top),
                "measured": dict.fromkeys(chance, mean),
                "chance": chance,
                "chance_of_strata": [chance] * len(strata),
            }
        },
        "fields": {},
        "top": size.top,
        "weaker": size.weaker,
        "neighbors": size.neighbors,
        "histogram_log2_edges": np.linspace(-4, 4, 17).tolist(),
        "seconds": 1.0,
    }
    (run / "export").mkdir(parents=True, exist_ok=True)
    decoder = {"W_dec": random.normal(size=(n, D)).astype(np.float32)}
    save_file(decoder, run / "export" / "sae_weights.safetensors")
    tables = {"latents": latents, "strata": by_stratum, "samples": kept}
    return results.save(
        results.folder_of(str(run)),
        facts,
        {name: pyarrow.table(columns) for name, columns in tables.items()},
        arrays,
    )


def _samples(random, size, alive, maximum, positions, strata, kind) -> dict:
    """Return the columns of the recorded samples: per firing latent first its strata, then top, then weaker ones."""
    firing = np.flatnonzero(alive)
    blocks = [("stratum", name, size.of_stratum, 1.0) for name in strata]
    blocks += [("top", None, size.top, 1.0), ("weaker", None, size.weaker, 0.4)]
    columns: dict[str, list] = {}
    for kind_of, stratum, count, most in blocks:
        falling = most * np.linspace(1, 0.7, max(count, 1))[:count]
        shape = len(firing), count
        sample = (random.integers(0, size.samples, (len(firing), 1)) + np.arange(count)) % size.samples
        position = random.integers(0, max(1, positions // 2), shape)
        timestep = np.full(shape, -1)
        if kind == "image":
            known = stratum is not None and stratum.isdigit()
            timestep = np.full(shape, int(stratum)) if known else random.choice(TIMESTEPS, shape)
        part = {
            "latent": np.repeat(firing, count).astype(np.int32),
            "sample": sample.astype(np.int32),
            "kind": np.full(shape, kind_of, object),
            "stratum": np.full(shape, stratum, object),
            "rank": np.tile(np.arange(count, dtype=np.int32), len(firing)),
            "position": position.astype(np.int32),
            "timestep": timestep.astype(np.int32),
            "value": (maximum[firing, None] * falling).astype(np.float32),
            "quantile": np.broadcast_to(falling, shape).astype(np.float32),
        }
        for name, column in part.items():
            columns.setdefault(name, []).append(column.reshape(-1))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    order = np.argsort(joined["latent"], kind="stable")
    typed = {name: column[order] for name, column in joined.items()}
    for name in ("kind", "stratum"):
        typed[name] = pyarrow.array(typed[name], pyarrow.string())
    return typed


def _profiles(random, n: int, top: int, cells: int) -> np.ndarray:
    """Return profiles with three active cells per sample; the others are zero, as in most real maps."""
    profile = np.zeros((n, top, cells), np.uint8)
    flat = profile.reshape(-1, cells)
    at = random.integers(0, cells, len(flat))
    for step, value in enumerate((255, 180, 90)):
        flat[np.arange(len(flat)), (at + step) % cells] = value
    return profile


def _png(number: int, pixels: int) -> bytes:
    hue = np.array([37 * number % 256, 91 * number % 256, 150], np.uint8)
    image = np.broadcast_to(hue, (pixels, pixels, 3)).copy()
    image[: pixels // 4, : pixels // 4] = 255
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()
