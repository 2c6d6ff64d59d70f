"""Take activations of a pipeline's text encoders or denoiser and write them to an activation store.

    python -m extract.run --config configs/mini_sd.py
    python -m extract.run --config configs/mini_sd.py --list_sites

config.extract.mode says what runs: text encoders alone over prompts, the denoiser while it makes
pictures of them, or the denoiser on noised pictures. A run that was stopped goes on at the first
missing shard when the same command is given again; a store that another config or model made is refused.
"""

import hashlib
import time
import typing
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from extract import inputs
from extract.work import Rows, Work, fingerprint, versions
from revelio_jax import sites
from revelio_jax.config import Config, main_argv, parse
from revelio_jax.errors import InputError, reported
from revelio_jax.store import SitePlan, StorePlan, StoreWriter
from revelio_jax.store.layout import kvstore_url

if typing.TYPE_CHECKING:
    from extract.text import Tokens


def extract(config: Config) -> dict[str, typing.Any]:
    """Write the store that ``config`` describes; returns its manifest. Raises InputError.

    All that can be refused is refused before anything is written.
    """
    started = time.monotonic()
    _check_names(config.extract.sites, config.extract.mode)
    kvstore_url(config.extract.store)
    work = _work(config)
    plan = work.plan
    writer = StoreWriter(config.extract.store, plan, work.samples)
    if writer.finished:
        print(f"store {config.extract.store} is complete: nothing to do")
        return writer.finish()

    missing = [(shard, _samples(shard, plan)) for shard in writer.missing()]
    todo = sum(len(part) for _, part in missing) * work.rounds
    total = len(work.samples) * work.rounds
    with tqdm.tqdm(total=total, initial=total - todo, desc="extract", unit=work.unit) as progress:
        for shard, part in missing:
            writer.write_shard(shard, work.shard(part, progress.update))
    manifest = writer.finish()
    _summarise(config.extract.store, manifest, work.unit, time.monotonic() - started)
    return manifest


def _work(config: Config) -> Work:
    """What the mode makes of the config. The modes import torch, which takes seconds."""
    if config.extract.mode == "generate":
        from extract import generate

        return generate.prepare(config)
    if config.extract.mode == "noised":
        from extract import noised

        return noised.prepare(config)
    return _text(config)


def _text(config: Config) -> Work:
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

    hooked = {site.name: site for each in joined.values() for site in each}

    def shard(part: range, advance: Callable[[int], typing.Any]) -> Rows:
        rows: Rows = {}
        for component, encoder in encoders.items():  # each reads every prompt
            wanted = [site for site in hooked.values() if site.component == component]
            rows |= text.rows(encoder, wanted, tokens[component], part, config.extract, advance)
        return {name: _joined([rows[site.name] for site in each]) for name, each in joined.items()}

    model = pipelines.described(config.model, source, device, encoders.values())
    plan = _plan(config, model, joined, kept, tokens, samples)
    described = text.described(samples, encoders, tokens)
    return Work(described, plan, shard, "prompt", rounds=len(encoders))


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
            "samples": fingerprint(samples),
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
        notes={"versions": versions()},
    )


def _rule(positions: str, joined: dict[str, list[sites.Site]]) -> str | dict[str, str]:
    """The positions kept: one rule, or that of every site where auto has several."""
    from extract import text

    rules = {name: text.positions(positions, parts[0]) for name, parts in joined.items()}
    return rules if len(set(rules.values())) > 1 else next(iter(rules.values()))


def _check_names(names: tuple[str, ...], mode: str) -> None:
    if not names:
        raise InputError("config.extract.sites is empty; it names hook points, such as ('clip.layer.9',)")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"config.extract.sites names {name} twice")
        if mode == "text" and any(sites.is_denoiser_site(part) for part in name.split("+")):
            raise InputError(
                f"config.extract.sites: {name} belongs to the denoiser, which config.extract.mode=text does "
                "not run; allowed there: generate, noised"
            )
        if mode != "text" and not sites.is_denoiser_site(name):
            raise InputError(
                f"config.extract.sites: {name} is no site of a denoiser, which config.extract.mode={mode} "
                f"records; those begin with {', '.join(sites.DENOISER_PREFIXES)}"
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


def _summarise(location: str, manifest: dict[str, typing.Any], unit: str, seconds: float) -> None:
    found = manifest["sites"]
    rows = ", ".join(f"{name} {site['rows']:,} x {site['d']}" for name, site in found.items())
    dropped = sum(site["dropped"] for site in found.values())
    size = {"float32": 4, "float16": 2, "bfloat16": 2}[manifest["dtype"]]
    megabytes = sum(site["rows"] * site["d"] * size for site in found.values()) / 1e6
    count = max(len(site.get("skipped", ())) for site in found.values())
    skipped = f"; {unit}s skipped: {count:,}" if count else ""
    print(f"{manifest['samples']:,} {unit}s, rows: {rows}; {dropped:,} non-finite rows dropped{skipped}")
    print(f"{megabytes:,.1f} MB of {manifest['dtype']} in {seconds:.1f} s: {location}")


def main(argv: Sequence[str]) -> None:
    config, flags = parse(
        argv, __doc__, list_sites=(False, "print every site of config.model and its size; extract nothing")
    )
    if flags["list_sites"]:
        from extract import listing

        print(listing.table(config))
        return
    extract(config)


if __name__ == "__main__":
    with reported():
        main(main_argv("extract.run"))
