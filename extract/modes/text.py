"""Mode text: record activations of the text encoders on prompts. Only the encoders run, in batches."""

import dataclasses
import typing

import numpy as np
import pyarrow

from extract import jobs, text_encoder
from extract.jobs import Progress, Sample, ShardRows, SiteRows, SiteSize
from extract.text_encoder import Tokens
from revelio_jax import checksums
from revelio_jax.config import Config, ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs.prompts import read_prompts
from revelio_jax.pipelines import dependence, fingerprint, hook_points, loading, placement
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.loading import TextEncoder
from revelio_jax.pipelines.source import PipelineSource
from revelio_jax.pipelines.tokens import position_rule
from revelio_jax.store import ModelRecord, StorePlan, Worker


@dataclasses.dataclass(frozen=True)
class TextJob:
    """The prompts, their tokens, and the text encoders.

    ``hook_points`` maps each name in config.extract.sites to the hook points that it joins, usually one. The keys of
    ``encoders`` and ``tokens`` are components of the pipeline. ``model`` describes the model in the manifest.
    """

    config: Config
    prompts: list[Sample]
    hook_points: dict[str, tuple[HookPoint, ...]]
    encoders: dict[str, TextEncoder]
    tokens: dict[str, Tokens]
    model: ModelRecord
    unit: typing.ClassVar[str] = "prompt"

    @property
    def passes(self) -> int:
        """Return the number of passes over each prompt, one per encoder."""
        return len(self.encoders)


def read_inputs(extract: ExtractConfig) -> list[Sample]:
    """Return the prompts. Raise InputError if the file cannot be read."""
    return read_prompts(extract.prompts, extract.prompt_column, extract.shuffle)


def load(config: Config, prompts: list[Sample], worker: Worker, source: PipelineSource) -> TextJob:
    """Load the text encoders of config.extract.sites and tokenize the prompts. Raise InputError for wrong fields."""
    sites, model = config.extract.sites, config.model
    device = loading.device(model.device, worker.number)
    pipe = loading.skeleton(source)
    dependence.warn_of_unused(sites, dependence.unused_in_skeleton(source, pipe))
    components = dict.fromkeys(loading.hook_point(pipe, part).component for name in sites for part in name.split("+"))
    encoders = {name: loading.load_text_encoder(source, name, model.dtype, device) for name in components}
    for component, encoder in encoders.items():
        setattr(pipe, component, encoder.model)
    joined = {name: hook_points.resolve_joined(pipe, name) for name in sites}
    texts = [prompt["prompt"] for prompt in prompts]
    tokens = {
        component: text_encoder.tokenize(encoder, loading.converted(source, encoder, texts))
        for component, encoder in encoders.items()
    }
    _check_joined(joined, tokens, config.extract.positions)
    # The fingerprint reads the weights on the CPU, before placement moves them.
    description = fingerprint.model_record(model, source, device, encoders.values())
    placement.place(source, pipe, encoders, model, device)
    return TextJob(config, prompts, joined, encoders, tokens, description)


def plan(job: TextJob) -> StorePlan:
    """Return the store's plan. The tokens of a prompt determine its number of rows."""
    positions = job.config.extract.positions
    rules = {name: position_rule(positions, parts[0].name) for name, parts in job.hook_points.items()}
    sizes = [
        SiteSize(name, sum(part.d for part in parts), _selected(parts[0], job.tokens, positions).sum(1))
        for name, parts in job.hook_points.items()
    ]
    return jobs.store_plan(
        job.config.extract,
        sizes,
        model=job.model,
        settings={"positions": rules if len(set(rules.values())) > 1 else next(iter(rules.values()))},
        inputs={
            "samples": jobs.samples_fingerprint(job.prompts),
            "tokens": checksums.of_bytes(b"".join(tokens.ids.tobytes() for tokens in job.tokens.values())),
        },
    )


def samples_table(job: TextJob) -> pyarrow.Table:
    """Return the prompts with the tokens of each encoder. Raise InputError if a column name is taken."""
    return text_encoder.samples_table(job.prompts, job.encoders, job.tokens)


def shard_rows(job: TextJob, samples: range, progress: Progress) -> ShardRows:
    """Return the rows of the prompts numbered ``samples`` at every hook point."""
    points = {point.name: point for parts in job.hook_points.values() for point in parts}.values()
    rows: ShardRows = {}
    for component, encoder in job.encoders.items():
        own_points = [point for point in points if point.component == component]
        tokens = job.tokens[component]
        rows |= text_encoder.rows(encoder, own_points, tokens, samples, job.config.extract, progress)
    return {name: _join([rows[part.name] for part in parts]) for name, parts in job.hook_points.items()}


def _check_joined(joined: dict[str, tuple[HookPoint, ...]], tokens: dict[str, Tokens], positions: str) -> None:
    """Raise InputError if joined hook points do not have the same rows."""
    for name, parts in joined.items():
        first, *others = (_selected(part, tokens, positions) for part in parts)
        if not all(np.array_equal(first, other) for other in others):
            raise InputError(
                f"config.extract.sites: {name} joins encoders whose tokens differ; joined encoders must have the "
                "same tokens for every prompt"
            )


def _selected(point: HookPoint, tokens: dict[str, Tokens], positions: str) -> np.ndarray:
    """Return a mask of the positions that are rows of the hook point: bool [prompt, position]."""
    return tokens[point.component].selected(position_rule(positions, point.name))


def _join(parts: list[SiteRows]) -> SiteRows:
    """Concatenate the activations of several hook points along their width."""
    if len(parts) == 1:
        return parts[0]
    return parts[0] | {"activations": np.concatenate([part["activations"] for part in parts], axis=1)}
