"""Activations of text encoders over prompts: the mode text. Encoders run alone, in batches."""

import numpy as np

from extract import jobs, text_encoder
from extract.jobs import Done, ExtractionJob, Rows
from extract.text_encoder import Tokens
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.inputs.prompts import read_prompts
from revelio_jax.pipelines import hook_points, loading, placement
from revelio_jax.store import Worker


def prepare(config: Config, worker: Worker) -> ExtractionJob:
    """Check all that can be refused, load the encoders, plan the store. Raises InputError."""
    extract = config.extract
    samples = read_prompts(extract.prompts, extract.prompt_column, extract.shuffle)
    loading.quiet()
    device = loading.device(config.model.device, worker.number)
    source = loading.find(config.model.id, config.model.revision, config.model.family)
    pipe = loading.skeleton(source)
    parts = [part for name in extract.sites for part in name.split("+")]
    needed = dict.fromkeys(loading.site(pipe, part).component for part in parts)
    encoders = {c: loading.load_text_encoder(source, c, config.model.dtype, device) for c in needed}
    for component, encoder in encoders.items():
        setattr(pipe, component, encoder.model)
    joined = {name: [hook_points.resolve(pipe, part) for part in name.split("+")] for name in extract.sites}
    prompts = [sample["prompt"] for sample in samples]
    tokens = {component: text_encoder.tokenise(encoder, prompts) for component, encoder in encoders.items()}
    kept = {name: _kept(name, hooked, tokens, extract.positions) for name, hooked in joined.items()}

    hooked = {site.name: site for each in joined.values() for site in each}

    def shard(part: range, advance: Done) -> Rows:
        rows: Rows = {}
        for component, encoder in encoders.items():  # each reads every prompt
            wanted = [site for site in hooked.values() if site.component == component]
            rows |= text_encoder.rows(encoder, wanted, tokens[component], part, extract, advance)
        return {name: _joined([rows[site.name] for site in each]) for name, each in joined.items()}

    facts = {
        "model": loading.described(config.model, source, device, encoders.values()),
        "extract": {"positions": _rule(extract.positions, joined)},
        "input": {
            "samples": jobs.fingerprint(samples),
            "tokens": jobs.digest(*(of.ids.tobytes() for of in tokens.values())),
        },
    }
    placement.place(pipe, encoders, config.model, device)
    # How many rows a sample has follows from its tokens alone.
    rows = {name: (sum(site.d for site in each), kept[name].sum(1)) for name, each in joined.items()}
    plan = jobs.plan(extract, rows, facts)
    described = text_encoder.described(samples, encoders, tokens)
    return ExtractionJob(described, plan, shard, "prompt", rounds=len(encoders))


def _rule(positions: str, joined: dict[str, list[hook_points.HookPoint]]) -> str | dict[str, str]:
    """The positions kept: one rule, or that of every site where auto has several."""
    rules = {name: text_encoder.positions(positions, parts[0]) for name, parts in joined.items()}
    return rules if len(set(rules.values())) > 1 else next(iter(rules.values()))


def _kept(name: str, parts: list[hook_points.HookPoint], tokens: dict[str, Tokens], rule: str) -> np.ndarray:
    """The rows of a site, bool [sample, position]. Raises InputError where its parts have not the same."""
    first, *others = (tokens[site.component].kept(text_encoder.positions(rule, site)) for site in parts)
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
