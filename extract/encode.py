"""Activations of text encoders over prompts: the mode text. Encoders run alone, in batches."""

import numpy as np

from extract import inputs, pipelines, placing, text, work
from extract.text import Tokens
from extract.work import Done, Rows, Work
from revelio_jax import sites
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.store import Worker


def prepare(config: Config, worker: Worker) -> Work:
    """Check all that can be refused, load the encoders, plan the store. Raises InputError."""
    extract = config.extract
    samples = inputs.read_prompts(extract.prompts, extract.prompt_column, extract.shuffle)
    pipelines.quiet()
    device = pipelines.device(config.model.device, worker.number)
    source = pipelines.find(config.model.id, config.model.revision, config.model.family)
    pipe = pipelines.skeleton(source)
    parts = [part for name in extract.sites for part in name.split("+")]
    needed = dict.fromkeys(pipelines.site(pipe, part).component for part in parts)
    encoders = {c: pipelines.load_text_encoder(source, c, config.model.dtype, device) for c in needed}
    for component, encoder in encoders.items():
        setattr(pipe, component, encoder.model)
    joined = {name: [sites.resolve(pipe, part) for part in name.split("+")] for name in extract.sites}
    prompts = [sample["prompt"] for sample in samples]
    tokens = {component: text.tokenise(encoder, prompts) for component, encoder in encoders.items()}
    kept = {name: _kept(name, hooked, tokens, extract.positions) for name, hooked in joined.items()}

    hooked = {site.name: site for each in joined.values() for site in each}

    def shard(part: range, advance: Done) -> Rows:
        rows: Rows = {}
        for component, encoder in encoders.items():  # each reads every prompt
            wanted = [site for site in hooked.values() if site.component == component]
            rows |= text.rows(encoder, wanted, tokens[component], part, extract, advance)
        return {name: _joined([rows[site.name] for site in each]) for name, each in joined.items()}

    facts = {
        "model": pipelines.described(config.model, source, device, encoders.values()),
        "extract": {"positions": _rule(extract.positions, joined)},
        "input": {
            "samples": work.fingerprint(samples),
            "tokens": work.digest(*(of.ids.tobytes() for of in tokens.values())),
        },
    }
    placing.place(pipe, encoders, config.model, device)
    # How many rows a sample has follows from its tokens alone.
    rows = {name: (sum(site.d for site in each), kept[name].sum(1)) for name, each in joined.items()}
    plan = work.plan(extract, rows, facts)
    described = text.described(samples, encoders, tokens)
    return Work(described, plan, shard, "prompt", rounds=len(encoders))


def _rule(positions: str, joined: dict[str, list[sites.Site]]) -> str | dict[str, str]:
    """The positions kept: one rule, or that of every site where auto has several."""
    rules = {name: text.positions(positions, parts[0]) for name, parts in joined.items()}
    return rules if len(set(rules.values())) > 1 else next(iter(rules.values()))


def _kept(name: str, parts: list[sites.Site], tokens: dict[str, Tokens], rule: str) -> np.ndarray:
    """The rows of a site, bool [sample, position]. Raises InputError where its parts have not the same."""
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
