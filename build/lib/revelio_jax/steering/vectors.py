"""A concept as vectors: made once with an SAE or from prompts, used without either.

    concept = steerer.vectors(pipe, "glossy 3d", rule="contrast")
    save_concept("glossy.safetensors", concept)
    ...
    with attach_vectors(pipe, "glossy.safetensors", -1.0):
        pipe("a glossy 3d emoji of a red apple")

The file is one of safetensors, with a vector for each token and site.
"""

import dataclasses
import json
import pathlib
import typing

import torch
from safetensors.torch import save

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.sae_folder.untrusted import one_line, read_header
from revelio_jax.steering.attachment import Attachment, Where
from revelio_jax.steering.concept import hidden_states
from revelio_jax.steering.pooled import POOLED, Pooled, pooled_of
from revelio_jax.steering.rules import Add
from revelio_jax.steering.sae import read_torch_tensors
from revelio_jax.steering.sampled_concepts import Sampling, sampled_mean
from revelio_jax.steering.session import session

FORMAT = "revelio_jax.concept.1"
FACTS = ("text", "rule", "model", "family")
POOLED_TENSORS = tuple(field.name for field in dataclasses.fields(Pooled))


@dataclasses.dataclass(frozen=True, eq=False)
class Concept:
    """What a concept adds to activations, at strength 1.

    ``directions`` has a vector for each token, float32 [T, D], by site; [1, D] is for every position alike,
    as in a denoiser. ``rule`` says how they were made, ``model`` and ``family`` of what. ``pooled`` is the
    concept in the pooled vector of SDXL and FLUX.
    """

    text: str
    directions: dict[str, torch.Tensor]
    rule: str = ""
    model: str = ""
    family: str = ""
    pooled: Pooled | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def sites(self) -> str:
        return "+".join(self.directions)


def save_concept(file: str | pathlib.Path, concept: Concept) -> None:
    """Write a concept as one safetensors file; whole or not at all."""
    file = pathlib.Path(file)
    partial = file.with_name(file.name + ".partial")
    facts = {name: getattr(concept, name) for name in FACTS} | {"sites": list(concept.directions)}
    tensors = dict(concept.directions)
    if concept.pooled:
        tensors |= {name: getattr(concept.pooled, name)[None] for name in POOLED_TENSORS}
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    # Not save_file, whose files nobody else can read.
    partial.write_bytes(save(tensors, {"format": FORMAT, "facts": json.dumps(facts)}))
    partial.replace(file)


def load_concept(file: str | pathlib.Path) -> Concept:
    """Read what :func:`save_concept` wrote. Raises InputError with what is wrong with it."""
    path = pathlib.Path(file)
    stated, held = read_header(path)
    if stated.get("format") != FORMAT:
        raise InputError(f"concept {file}: no file of vectors; steering.save_concept makes one")
    try:
        facts = json.loads(stated["facts"])
        names = list(facts["sites"])  # in their own order
        if missing := [name for name in names if name not in held]:
            raise KeyError(missing[0])
        facts = {name: one_line(facts[name]) for name in FACTS}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"concept {file}: lacks or misstates {error}") from error
    if not names:
        raise InputError(f"concept {file}: has no vector")
    tensors = read_torch_tensors(path, dict.fromkeys(held, (None, None)))
    pooled = [tensors[name][0] for name in POOLED_TENSORS if name in tensors]
    return Concept(
        directions={name: tensors[name] for name in names},
        pooled=Pooled(*pooled) if len(pooled) == 2 else None,
        **facts,
    )


def difference_of_means(
    pipe: typing.Any,
    site: str,
    with_concept: list[str],
    without: list[str],
    text: str = "",
    sampling: Sampling | None = None,
) -> Concept:
    """Mean activations of prompts with a concept minus those of prompts without, token by token.

    At a site of the denoiser pictures of the prompts are sampled, and the mean is over positions too.
    """
    if hook_points.is_denoiser_site(site):
        v_TD = sampled_mean(pipe, site, with_concept, sampling) - sampled_mean(pipe, site, without, sampling)
    else:
        v_TD = hidden_states(pipe, site, with_concept).mean(0) - hidden_states(pipe, site, without).mean(0)
    return of_joined(pipe, site, v_TD, text, "difference of means")


def of_joined(pipe: typing.Any, site: str, v_TD: torch.Tensor, text: str, rule: str) -> Concept:
    """A concept from vectors [T, D] at a site, or at sites joined by +, side by side in D."""
    joined = hook_points.resolve_joined(pipe, site)
    parts = v_TD.split([part.d for part in joined], dim=-1)
    directions = {part.name: v.contiguous() for part, v in zip(joined, parts, strict=True)}
    family = hook_points.family(pipe)
    pooled = pooled_of(pipe, text) if text and family in POOLED else None
    return Concept(text, directions, rule, pipe.name_or_path or "", family, pooled)


def attach_vectors(
    pipe: typing.Any,
    concept: Concept | str | pathlib.Path,
    strength: float,
    *,
    positions: str | torch.Tensor = "all",
    steps: tuple[float, float] | None = None,
    ramp: tuple[float, float] = (1.0, 1.0),
    mask: torch.Tensor | None = None,
    pooled: bool | None = None,
    negative_branch: bool = True,
) -> Attachment:
    """Add ``strength`` times a concept's vectors; no SAE is needed. The rest is as Steerer.attach has it.

    Raises InputError where the vectors do not fit the pipeline.
    """
    given = concept
    if not isinstance(concept, Concept):
        concept = load_concept(concept)
    hooked = fit(pipe, concept)
    where = Where(positions, steps, ramp, mask, pooled)
    if pooled and concept.pooled is None:
        raise InputError(f"pooled is True, but {concept.text!r} was saved without a pooled vector")
    return Attachment(
        session(pipe),
        owner=attach_vectors,
        hooked=hooked,
        make=lambda strengths, device, length: {given: change(concept, device, length)},
        strengths={given: strength},
        on_negative=[given] if negative_branch else [],
        where=where,
        make_pooled=lambda key: concept.pooled,
    )


def fit(pipe: typing.Any, concept: Concept) -> tuple[hook_points.HookPoint, ...]:
    """The sites of a concept in ``pipe``. Raises InputError where its vectors are for another model."""
    if concept.family and concept.family != hook_points.family(pipe):
        raise InputError(
            f"the concept {concept.text!r} is of a pipeline of the family {concept.family}; this one is "
            f"{hook_points.family(pipe)}"
        )
    hooked = tuple(hook_points.resolve(pipe, name) for name in concept.directions)
    for site in hooked:
        width = concept.directions[site.name].shape[-1]
        if width != site.d:
            raise InputError(
                f"the concept {concept.text!r} is of another model: its vectors at {site.name} have {width} "
                f"entries, activations there have {site.d}"
            )
    return hooked


def change(concept: Concept, device: torch.device | None = None, length: int | None = None) -> Add:
    """The change that the vectors make, for prompts of ``length`` tokens."""
    vectors = [v_TD.to(device) if device else v_TD for v_TD in concept.directions.values()]
    longest = max(len(v_TD) for v_TD in vectors)
    if length is not None and any(len(v_TD) not in (1, length) for v_TD in vectors):
        raise InputError(
            f"the concept {concept.text!r} is for prompts of {longest} tokens, these have {length}; pass the "
            f"pipeline max_sequence_length={longest}, or make the vectors with that many"
        )
    return Add(torch.cat([v_TD.expand(longest, -1) for v_TD in vectors], dim=-1))
