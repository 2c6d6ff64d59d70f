"""Interchange interventions: which label of a prompt do the activations of a hook point carry?

Of two matched prompts with different labels, the first is sampled with the activations of the second at one hook point,
from the same seed. The judge then says whose label the image shows. Source: Geiger et al. (2021), arXiv 2106.02997.
"""

import collections
import dataclasses
import random
import typing
from collections.abc import Sequence

import numpy as np
import torch

from revelio_jax.benchmark.judgment import Judge
from revelio_jax.benchmark.measurement import Interval, interval
from revelio_jax.config import SteerConfig
from revelio_jax.faithfulness import patches
from revelio_jax.faithfulness.patches import Clock, Interchange, Replacement
from revelio_jax.faithfulness.sites import Site
from revelio_jax.pipelines import tokens
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering.concept import is_masked, tokenizer_of
from revelio_jax.steering.labels import LabeledPrompt

CANDIDATES = 500  # prompts among which the second prompt of a pair is searched


class Moved(typing.TypedDict):
    """Shares of images that show the label of the second prompt of a pair, and of the first."""

    second: Interval
    first: Interval


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Matched prompts: ``first[i]`` and ``second[i]`` differ in the label ``column`` and agree in the other labels.

    All prompts have the same kinds of tokens at the same positions: ``kinds``, int8 [T], by text encoder.
    """

    column: str
    first: list[LabeledPrompt]
    second: list[LabeledPrompt]
    kinds: dict[str, np.ndarray]


def find_pairs(
    pipe: typing.Any, labeled: Sequence[LabeledPrompt], columns: Sequence[str], column: str, n: int, seed: int
) -> Pairs | None:
    """Return at most ``n`` pairs that differ in ``column``, or None if there are none.

    ``columns`` are the judged labels; the prompts of a pair agree in the others. The second prompt of a pair is the one
    that shares the most words with the first.
    """
    complete = [row for row in labeled if all(row[each] for each in columns)]
    groups: dict[bytes, list[LabeledPrompt]] = collections.defaultdict(list)
    kinds = _kinds(pipe, [row["prompt"] for row in complete])
    for i, row in enumerate(complete):
        groups[b"".join(each[i].tobytes() for each in kinds.values())].append(row)
    best: tuple[list[LabeledPrompt], list[LabeledPrompt]] = ([], [])
    for group in sorted(groups.values(), key=len, reverse=True)[:5]:
        found = _pairs_in(group, columns, column, n, random.Random(seed))
        best = max(best, found, key=lambda pair: len(pair[0]))
        if len(best[0]) == n:
            break
    if not best[0]:
        return None
    of_first = _kinds(pipe, [best[0][0]["prompt"]])
    return Pairs(column, *best, {component: each[0] for component, each in of_first.items()})


def _pairs_in(
    group: list[LabeledPrompt], columns: Sequence[str], column: str, n: int, rng: random.Random
) -> tuple[list[LabeledPrompt], list[LabeledPrompt]]:
    by_others: dict[tuple[str, ...], list[LabeledPrompt]] = collections.defaultdict(list)
    for row in group:
        by_others[tuple(row[each] for each in columns if each != column)].append(row)
    first: list[LabeledPrompt] = []
    second: list[LabeledPrompt] = []
    for row in rng.sample(group, len(group)):
        others = by_others[tuple(row[each] for each in columns if each != column)]
        candidates = [other for other in others if other[column] != row[column]]
        if candidates and len(first) < n:
            words = set(row["prompt"].split())
            candidates = rng.sample(candidates, min(CANDIDATES, len(candidates)))
            first.append(row)
            second.append(max(candidates, key=lambda other: len(words & set(other["prompt"].split()))))
    return first, second


def _kinds(pipe: typing.Any, texts: list[str]) -> dict[str, np.ndarray]:
    """Return the kinds of the tokens of texts for each text encoder, int8 [text, T]."""
    kinds: dict[str, np.ndarray] = {}
    for component in family_of(pipe).text_encoders.values():
        tokenizer, encoder = tokenizer_of(pipe, component), getattr(pipe, component)
        length = min(tokenizer.model_max_length, getattr(encoder.config, "max_position_embeddings", 512))
        encoding = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="np")
        mask = encoding["attention_mask"] if is_masked(encoder) else None
        kinds[component] = tokens.kinds(encoding["input_ids"], tokenizer, mask)
    return kinds


def selections(pipe: typing.Any, site: Site, pairs: Pairs) -> dict[str, str | torch.Tensor]:
    """Return the positions of a site to interchange, by name.

    In a text encoder the words and the other tokens (BOS, EOS, padding) are interchanged apart: if all tokens of the
    only encoder are, the rest of the pipeline receives the second prompt, whatever the hook point.
    """
    if not site.is_text:
        return {"all positions": "all"}
    kinds = pairs.kinds[site.points[0].component]
    is_word = torch.from_numpy(kinds == tokens.CONTENT)
    chosen: dict[str, str | torch.Tensor] = {"words": is_word, "other tokens": ~is_word}
    if len(family_of(pipe).text_encoders) > len(site.points):
        chosen["all tokens"] = "all"
    return chosen


def measure(
    pipe: typing.Any,
    pairs: Pairs,
    judge: Judge,
    settings: SteerConfig,
    seed: int,
    clock: Clock,
    site: Site | None = None,
    positions: str | torch.Tensor = "all",
) -> tuple[Moved, Moved]:
    """Return the labels that images of the first prompts show, and those that images of the second prompts show.

    The first are sampled with the activations of the second at ``site``; without it, all are plain. Both prompts of a
    pair are in one batch, so that no activations need to be kept.
    """
    patch = Interchange()
    half = max(1, settings.batch_size // 2)
    order: list[int] = []  # of the first prompts, then of the second, for each batch
    for start in range(0, len(pairs.first), half):
        part = list(range(start, min(start + half, len(pairs.first))))
        order += [*part, *[len(pairs.first) + i for i in part]]
    rows = [*pairs.first, *pairs.second]

    def begin(batch: list[int]) -> dict[str, typing.Any]:
        patch.prompts = len(batch)
        return {}

    def images() -> np.ndarray:
        return sample(
            pipe,
            [rows[i]["prompt"] for i in order],
            [seed + i % len(pairs.first) for i in order],
            steps=settings.steps,
            guidance=settings.guidance,
            height=settings.height,
            width=settings.width,
            batch_size=2 * half,
            extra=begin,
        ).images

    if site is None:
        pixels = images()
    else:
        replacement = Replacement(patch, clock, site.timesteps, family_of(pipe).timestep_scale)
        with patches.attach(pipe, site.points, replacement, positions=positions, difference=site.difference):
            pixels = images()
    shown = [judgment.labels[pairs.column] for judgment in judge.judge(pixels[np.argsort(order)])]
    count = len(pairs.first)
    return _moved(shown[:count], pairs), _moved(shown[count:], pairs)


def _moved(shown: Sequence[str], pairs: Pairs) -> Moved:
    def share(rows: Sequence[LabeledPrompt]) -> Interval:
        return interval(np.array([s == row[pairs.column] for s, row in zip(shown, rows, strict=True)], float))

    return {"second": share(pairs.second), "first": share(pairs.first)}
