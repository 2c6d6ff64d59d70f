"""Save a concept as vectors, which steer without the SAE or the prompts that they were computed from.

    concept = steerer.vectors(pipe, "glossy 3d", rule="contrast")
    save_concept("glossy.safetensors", concept)
    ...
    with attach_vectors(pipe, "glossy.safetensors", -1.0):
        pipe("a glossy 3d emoji of a red apple")

The file is a safetensors file with a vector for each token and hook point.
"""

import dataclasses
import json
import pathlib
import typing

import torch
from safetensors.torch import save

from revelio_jax import json_text
from revelio_jax.errors import InputError
from revelio_jax.files import write_bytes
from revelio_jax.pipelines import hook_points, hooks
from revelio_jax.pipelines.families import family_of
from revelio_jax.sae_folder.untrusted import one_line, read_header
from revelio_jax.steering import session
from revelio_jax.steering.attachment import AttachedConcept, Attachment
from revelio_jax.steering.compatibility import refuse_unused
from revelio_jax.steering.concept import hidden_states
from revelio_jax.steering.pooled import Pooled, pooled_of
from revelio_jax.steering.rules import Add
from revelio_jax.steering.sae import read_torch_tensors
from revelio_jax.steering.sampled_concepts import CallArguments, sampled_mean
from revelio_jax.steering.strengths import Strength, check_strength
from revelio_jax.steering.where import Where, WhereFields

FORMAT = "revelio_jax.concept.1"
TEXTS = ("text", "rule", "model", "family")  # fields in the metadata of the file
POOLED_TENSORS = tuple(field.name for field in dataclasses.fields(Pooled))


@dataclasses.dataclass(frozen=True, eq=False)
class Concept:
    """The vectors that a concept adds to activations at strength 1.

    ``directions`` maps the name of a hook point to a vector for each token, float32 [T, D]; [1, D] is one vector for
    all positions. ``rule`` is the method that computed them from the pipeline ``model`` of ``family``. ``pooled`` is
    the concept in the pooled vector of SDXL and FLUX.
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
        """Return the names of its hook points, joined by +."""
        return "+".join(self.directions)

    def change_function(self, device: torch.device | None = None, tokens: int | None = None) -> Add:
        """Return the function that adds the vectors to prompts of ``tokens`` tokens; None accepts any length.

        Raise InputError if the vectors are for another prompt length.
        """
        vectors = [v_TD.to(device) if device else v_TD for v_TD in self.directions.values()]
        longest = max(len(v_TD) for v_TD in vectors)
        if tokens is not None and any(len(v_TD) not in (1, tokens) for v_TD in vectors):
            raise InputError(
                f"the concept {self.text!r} is for prompts of {longest} tokens, but this prompt has {tokens}; pass "
                f"max_sequence_length={longest} to the pipeline, or compute the vectors for {tokens} tokens"
            )
        return Add(torch.cat([v_TD.expand(longest, -1) for v_TD in vectors], dim=-1))


@dataclasses.dataclass(frozen=True)
class VectorSource:
    """Saved vectors as the source of a concept; see :class:`revelio_jax.steering.attachment.ConceptSource`."""

    concept: Concept

    def change_function(self, strength: Strength, device: torch.device | None, tokens: int | None) -> Add:
        return self.concept.change_function(device, tokens)

    def pooled(self) -> Pooled | None:
        return self.concept.pooled


def save_concept(file: str | pathlib.Path, concept: Concept) -> None:
    """Write a concept as one safetensors file. Raise InputError if the file cannot be written."""
    fields = {name: getattr(concept, name) for name in TEXTS} | {"sites": list(concept.directions)}
    tensors = dict(concept.directions)
    if concept.pooled:
        tensors |= {name: getattr(concept.pooled, name)[None] for name in POOLED_TENSORS}
    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
    # save_file would create a file that other users cannot read.
    write_bytes(pathlib.Path(file), save(tensors, {"format": FORMAT, "facts": json.dumps(fields)}))


def load_concept(file: str | pathlib.Path) -> Concept:
    """Read a file of :func:`save_concept`. Raise InputError if the file is of another kind or malformed."""
    path = pathlib.Path(file)
    metadata, headers = read_header(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"concept {file}: it must be a file written by steering.save_concept")
    try:
        fields = json_text.parse_object(metadata["facts"])
        names = list(fields["sites"])  # safetensors sorts its tensors
        if missing := [name for name in names if name not in headers]:
            raise KeyError(missing[0])
        texts = {name: one_line(fields[name]) for name in TEXTS}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"concept {file}: a field is missing or malformed: {error}") from error
    if not names:
        raise InputError(f"concept {file}: it has no vectors")
    tensors = read_torch_tensors(path, dict.fromkeys(headers, (None, None)))
    pooled = [tensors[name][0] for name in POOLED_TENSORS if name in tensors]
    return Concept(
        directions={name: tensors[name] for name in names},
        pooled=Pooled(*pooled) if len(pooled) == 2 else None,
        **texts,
    )


def difference_of_means(
    pipe: typing.Any,
    site: str,
    with_concept: list[str],
    without: list[str],
    text: str = "",
    sampling: CallArguments | None = None,
) -> Concept:
    """Return the mean activation of prompts with a concept minus the mean of other prompts, token by token.

    At a hook point of the denoiser, the pipeline samples images of the prompts, and the mean is also over positions.
    ``sampling`` has arguments of the pipeline's call.
    """
    if hook_points.is_denoiser_point(site):
        v_TD = sampled_mean(pipe, site, with_concept, sampling) - sampled_mean(pipe, site, without, sampling)
    else:
        v_TD = hidden_states(pipe, site, with_concept).mean(0) - hidden_states(pipe, site, without).mean(0)
    return from_joined_vectors(pipe, site, v_TD, text, "difference of means")


def from_joined_vectors(pipe: typing.Any, site: str, v_TD: torch.Tensor, text: str, rule: str) -> Concept:
    """Return a concept from vectors [T, D] at a hook point, or at several joined by + and concatenated in D."""
    points = hook_points.resolve_joined(pipe, site)
    columns = v_TD.split([point.d for point in points], dim=-1)
    directions = {point.name: v.contiguous() for point, v in zip(points, columns, strict=True)}
    family = family_of(pipe)
    pooled = pooled_of(pipe, text) if text and family.pooled else None
    return Concept(text, directions, rule, pipe.name_or_path or "", family.name, pooled)


def attach_vectors(
    pipe: typing.Any,
    concept: Concept | str | pathlib.Path,
    strength: float,
    *,
    where: Where | None = None,
    negative_branch: bool = True,
    **limits: typing.Unpack[WhereFields],
) -> Attachment:
    """Add ``strength`` times the vectors of a concept, without an SAE.

    ``concept`` is a :class:`Concept` or a file of :func:`save_concept`. The fields of ``where`` can also be passed as
    keywords; ``negative_branch`` also steers the unconditional branch, in the opposite direction. Raise InputError
    if the vectors do not fit the pipeline.
    """
    loaded = concept if isinstance(concept, Concept) else load_concept(concept)
    points = matching_points(pipe, loaded)
    where = dataclasses.replace(where or Where(), **limits)
    if where.pooled and loaded.pooled is None:
        raise InputError(f"pooled is True, but the concept {loaded.text!r} was saved without a pooled vector")
    if strength:
        refuse_unused(pipe, points)
    attached = AttachedConcept(VectorSource(loaded), check_strength(concept, strength), negative_branch)
    attachment = Attachment(points, {concept: attached}, where, family_of(pipe), owner=attach_vectors)
    return session.attach(pipe, attachment)


def matching_points(pipe: typing.Any, concept: Concept) -> tuple[hooks.HookPoint, ...]:
    """Return the hook points of a concept in ``pipe``. Raise InputError if its vectors are for another model."""
    if concept.family and concept.family != family_of(pipe).name:
        raise InputError(
            f"the concept {concept.text!r} is for another model, of the family {concept.family}; this pipeline is of "
            f"the family {family_of(pipe).name}"
        )
    points = tuple(hook_points.resolve(pipe, name) for name in concept.directions)
    for point in points:
        width = concept.directions[point.name].shape[-1]
        if width != point.d:
            raise InputError(
                f"the concept {concept.text!r} is for another model: its vectors at {point.name} have width {width}, "
                f"the activations have width {point.d}"
            )
    return points
