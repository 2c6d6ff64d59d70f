"""Take activations of a pipeline's text encoders and write them to an activation store.

    python -m extract.run --config configs/mini_sd.py

Text encoders run alone, in batches. A run that was stopped goes on at the first missing shard when
the same command is given again; a store that another config or model made is refused.
"""

import hashlib
import importlib.metadata
import json
import time
import typing
from collections.abc import Sequence

import numpy as np
import tqdm

from extract import inputs
from revelio_jax import sites
from revelio_jax.config import Config, main_argv, parse
from revelio_jax.errors import InputError, reported
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.store.layout import kvstore_url

if typing.TYPE_CHECKING:
    from extract.text import Tokens

LIBRARIES = ("revelio_jax", "torch", "transformers", "tensorstore")


def extract(config: Config) -> dict[str, typing.Any]:
    """Write the store that ``config`` describes; returns its manifest. Raises InputError.

    All that can be refused is refused before anything is written.
    """
    started = time.monotonic()
    _check_names(config.extract.sites)
    kvstore_url(config.extract.store)
    samples = inputs.read_prompts(config.extract.prompts, config.extract.prompt_column)

    # These import torch, which takes seconds: after the checks that need none.
    from extract import pipelines, text

    pipelines.quiet()
    device = pipelines.device(config.model.device)
    source = pipelines.find(config.model.id, config.model.revision, config.model.family)
    pipe = pipelines.skeleton(source)
    parts = [part for name in config.extract.sites for part in name.split("+")]
    needed = dict.fromkeys(sites.resolve(pipe, part).component for part in parts)
    encoders = {c: pipelines.load_text_encoder(source, c, config.model.dtype, device) for c in needed}
    for component, encoder in encoders.items():
        setattr(pipe, component, encoder.model)
    joined = {name: [sites.resolve(pipe, part) for part in name.split("+")] for name in config.extract.sites}
    prompts = [sample["prompt"] for sample in samples]
    tokens = {component: text.tokenise(encoder, prompts) for component, encoder in encoders.items()}
    kept = {name: _kept(name, hooked, tokens, config.extract.positions) for name, hooked in joined.items()}

    model = {
        "id": config.model.id,
        "revision": config.model.revision,
        "family": config.model.family,
        "dtype": config.model.dtype,
        "device": device.type,
        "fingerprint": pipelines.fingerprint(source, encoders.values()),
    }
    plan = _plan(config, model, joined, kept, tokens, samples)
    writer = StoreWriter(config.extract.store, plan, text.described(samples, encoders, tokens))
    if writer.finished:
        print(f"store {config.extract.store} is complete: nothing to do")
        return writer.finish()

    missing = [(shard, _samples(shard, plan)) for shard in writer.missing()]
    todo = sum(len(part) for _, part in missing) * len(encoders)  # every encoder reads every prompt
    total = len(samples) * len(encoders)
    with tqdm.tqdm(total=total, initial=total - todo, desc="extract", unit="prompt") as progress:
        for shard, part in missing:
            rows = {}
            for component, encoder in encoders.items():
                hooked = {site.name: site for each in joined.values() for site in each}
                wanted = [site for site in hooked.values() if site.component == component]
                rows |= text.rows(encoder, wanted, tokens[component], part, config.extract, progress.update)
            writer.write_shard(
                shard, {name: _joined([rows[site.name] for site in each]) for name, each in joined.items()}
            )
    manifest = writer.finish()
    _summarise(config.extract.store, manifest, time.monotonic() - started)
    return manifest


def _plan(
    config: Config,
    model: dict[str, str],
    joined: dict[str, list[sites.Site]],
    kept: dict[str, np.ndarray],
    tokens: dict[str, "Tokens"],
    samples: list[dict[str, typing.Any]],
) -> StorePlan:
    """The store's plan. How many rows each shard holds follows from the tokens alone."""
    size = config.extract.shard_samples
    planned = []
    for name, parts in joined.items():
        rows = kept[name].sum(1)
        shards = tuple(int(rows[start : start + size].sum()) for start in range(0, len(rows), size))
        planned.append(SitePlan(name, sum(site.d for site in parts), shards))
    facts = {
        "model": model,
        "extract": {
            "sites": list(config.extract.sites),
            "positions": _rule(config.extract.positions, joined),
            "batch_size": config.extract.batch_size,
        },
        "input": {
            "samples": _sha256(json.dumps(samples, sort_keys=True, default=str).encode()),
            "tokens": _sha256(*(t.ids.tobytes() for t in tokens.values())),
        },
    }
    return StorePlan(
        sites=tuple(planned),
        dtype=config.extract.dtype,
        chunk_rows=config.extract.chunk_rows,
        shard_samples=size,
        samples=len(samples),
        facts=facts,
        notes={"versions": {name: importlib.metadata.version(name) for name in LIBRARIES}},
    )


def _rule(positions: str, joined: dict[str, list[sites.Site]]) -> str | dict[str, str]:
    """The positions kept: one rule, or that of every site where auto has several."""
    from extract import text

    rules = {name: text.positions(positions, parts[0]) for name, parts in joined.items()}
    return rules if len(set(rules.values())) > 1 else next(iter(rules.values()))


def _check_names(names: tuple[str, ...]) -> None:
    if not names:
        raise InputError("config.extract.sites is empty; it names hook points, such as ('clip.layer.9',)")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"config.extract.sites names {name} twice")
        if any(sites.is_denoiser_site(part) for part in name.split("+")):
            raise InputError(
                f"config.extract.sites: {name} belongs to the denoiser; "
                "only text-encoder sites are extracted in this version"
            )


def _samples(shard: int, plan: StorePlan) -> range:
    return range(shard * plan.shard_samples, min((shard + 1) * plan.shard_samples, plan.samples))


def _kept(name: str, parts: list[sites.Site], tokens: dict[str, "Tokens"], rule: str) -> np.ndarray:
    """The rows of a site, bool [sample, position]. Raises InputError where its parts have not the same."""
    from extract import text

    first, *others = (tokens[site.component].kept(text.positions(rule, site)) for site in parts)
    if not all(np.array_equal(first, other) for other in others):
        raise InputError(
            f"config.extract.sites: {name} joins encoders that do not have the same tokens of every prompt"
        )
    return first


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The rows of one site from those of its parts, side by side."""
    if len(parts) == 1:
        return parts[0]
    return parts[0] | {"activations": np.concatenate([part["activations"] for part in parts], axis=1)}


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _summarise(location: str, manifest: dict[str, typing.Any], seconds: float) -> None:
    found = manifest["sites"]
    rows = ", ".join(f"{name} {site['rows']:,} x {site['d']}" for name, site in found.items())
    dropped = sum(site["dropped"] for site in found.values())
    size = {"float32": 4, "float16": 2, "bfloat16": 2}[manifest["dtype"]]
    megabytes = sum(site["rows"] * site["d"] * size for site in found.values()) / 1e6
    print(f"{manifest['samples']:,} prompts, rows: {rows}; {dropped:,} non-finite rows dropped")
    print(f"{megabytes:,.1f} MB of {manifest['dtype']} in {seconds:.1f} s: {location}")


def main(argv: Sequence[str]) -> None:
    config, _ = parse(argv, __doc__)
    extract(config)


if __name__ == "__main__":
    with reported():
        main(main_argv("extract.run"))
