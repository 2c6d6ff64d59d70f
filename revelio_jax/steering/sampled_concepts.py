"""Encode a text as a concept at a hook point of the denoiser, which sees the text only together with a noisy image.

The pipeline samples images of the text with guidance, so its denoiser processes every noisy image with and without
the prompt. The difference of the latents is the effect of the text. A pipeline that runs only the prompt samples
images of the empty prompt too, from the same noise. Positions have no fixed meaning in an image, so the
codes are means over steps, images and positions.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable, Generator, Mapping

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, hooks
from revelio_jax.pipelines.assembly import text_to_image_twin
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering.concept import GATE, EncodedConcept, own_latents, presence
from revelio_jax.steering.learned_concepts import LearnedConcept
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.session import unsteered, watching
from revelio_jax.steering.steering_hook import Pass

IMAGES, STEPS = 4, 10  # per text; the caller may set another number of steps
BATCH_SIZE = 16  # prompts sampled together
OWN_ARGUMENTS = ("prompt", "class_labels", "output_type", "generator")  # callers cannot replace them

CallArguments = Mapping[str, typing.Any]
"""Arguments of a pipeline's call, for example height, width and num_inference_steps."""
OnPass = Callable[[str, torch.Tensor], typing.Any]
"""Called with the branch of guidance and its activations [B, T, D], float32, of one pass of the denoiser."""


@torch.no_grad()
def watch_passes(
    pipe: typing.Any,
    point: hooks.HookPoint,
    prompts: list[str],
    on_pass: OnPass,
    sampling: CallArguments | None = None,
    *,
    seed: int = 0,
    difference: bool = False,
    as_branch: str | None = None,
) -> None:
    """Sample ``prompts`` without steering, and call ``on_pass`` for every pass and branch at the hook point.

    Prompt i is sampled with the seed ``seed`` + i. With ``difference``, the activations are the module's output minus
    its input. ``as_branch`` replaces the branch of all rows. Pipelines that need an image are replaced by a
    text-to-image pipeline of the same components.

    Raise InputError if the arguments ``sampling`` turn guidance off, or if the components cannot generate images from
    a text alone.
    """
    twin = text_to_image_twin(pipe)
    point = dataclasses.replace(point, module=hook_points.resolve(twin, point.name).module)

    def watch(_name: str, current: Pass, x_BTD: torch.Tensor) -> None:
        branches = [as_branch or branch for branch in current.branches]
        if unclear := set(branches) - {CONDITIONAL, UNCONDITIONAL}:
            raise InputError(f"{type(twin).__name__} ran rows of the branch {min(unclear)!r}, which cannot be read")
        for branch in dict.fromkeys(branches):
            on_pass(branch, x_BTD[[row for row, each in enumerate(branches) if each == branch]])

    with contextlib.ExitStack() as stack:
        stack.enter_context(unsteered(pipe))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_plain_attention(twin))
        stack.enter_context(watching(twin, [point], watch, difference=difference))
        twin(**_arguments(twin, prompts, sampling or {}, seed))


def encode_sampled(
    pipe: typing.Any,
    site_name: str,
    sae_on: Callable[[torch.device], Sae],
    text: str,
    learned: LearnedConcept | None,
    sampling: CallArguments | None,
    difference: bool,
) -> EncodedConcept:
    """Encode a text from images that the pipeline samples of it; its codes are [1, F].

    Raise InputError if ``learned`` belongs to a text encoder, or for the reasons of :func:`watch_passes`.
    """
    if learned is not None and len(learned.difference) != 1:
        raise InputError(f"the learned concept {text!r} belongs to a text encoder, not to {site_name}")
    point = hook_points.resolve(pipe, site_name)
    pre_codes: dict[str, list[torch.Tensor]] = {CONDITIONAL: [], UNCONDITIONAL: []}
    codes: dict[str, list[torch.Tensor]] = {CONDITIONAL: [], UNCONDITIONAL: []}

    def add(branch: str, x_BTD: torch.Tensor) -> None:
        sae = sae_on(x_BTD.device)
        pre_codes[branch].append(sae.pre_codes(x_BTD).mean((0, 1))[None])
        codes[branch].append(sae.codes(x_BTD).mean((0, 1))[None])

    for seed in range(IMAGES):
        watch_passes(pipe, point, [text], add, sampling, seed=seed, difference=difference)
    if not codes[UNCONDITIONAL]:  # guidance by an embedding, or none: images of the empty prompt take its place
        for seed in range(IMAGES):
            watch_passes(pipe, point, [""], add, sampling, seed=seed, difference=difference, as_branch=UNCONDITIONAL)
    if learned is None:
        codes_1F, empty_codes_1F = _mean(codes[CONDITIONAL]), _mean(codes[UNCONDITIONAL])
        latents = own_latents(codes_1F, empty_codes_1F)
        presences: list[torch.Tensor] = []

        def add_presence(branch: str, x_BTD: torch.Tensor) -> None:
            if branch == CONDITIONAL:
                presences.append(presence(sae_on(x_BTD.device).codes(x_BTD), latents))

        watch_passes(pipe, point, [text], add_presence, sampling, seed=IMAGES, difference=difference)
        learned = LearnedConcept(latents, codes_1F - empty_codes_1F, GATE * float(torch.cat(presences).median()))
    pre_codes_1F, empty_pre_codes_1F = _mean(pre_codes[CONDITIONAL]), _mean(pre_codes[UNCONDITIONAL])
    return EncodedConcept(text, pre_codes_1F, empty_pre_codes_1F, learned.to(pre_codes_1F.device))


def _mean(passes: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over passes, summed in their order."""
    total = torch.zeros_like(passes[0])
    for one in passes:
        total = total + one
    return total / len(passes)


def sample_prompts(
    pipe: typing.Any,
    site_name: str,
    prompts: list[str],
    on_activations: Callable[[torch.Tensor], typing.Any],
    sampling: CallArguments | None = None,
    *,
    difference: bool = False,
) -> None:
    """Sample an image of every prompt; call ``on_activations`` with the conditional rows [B, T, D] of each pass."""
    point = hook_points.resolve(pipe, site_name)

    def on_pass(branch: str, x_BTD: torch.Tensor) -> None:
        if branch == CONDITIONAL:
            on_activations(x_BTD)

    for start in range(0, len(prompts), BATCH_SIZE):
        watch_passes(
            pipe, point, prompts[start : start + BATCH_SIZE], on_pass, sampling, seed=start, difference=difference
        )


def sampled_mean(
    pipe: typing.Any, site_name: str, prompts: list[str], sampling: CallArguments | None = None
) -> torch.Tensor:
    """Return the mean activation over prompts, steps and positions: [1, D]."""
    means: list[torch.Tensor] = []
    sample_prompts(pipe, site_name, prompts, lambda x_BTD: means.append(x_BTD.mean((0, 1))), sampling)
    return torch.stack(means).mean(0, keepdim=True)


@contextlib.contextmanager
def _plain_attention(pipe: typing.Any) -> Generator[None]:
    """Give the denoiser plain attention in the block, if a PAG pipeline that shares it has left its own there."""
    model = family_of(pipe).denoiser_of(pipe)
    processors: dict[str, typing.Any] = getattr(model, "attn_processors", {})
    left = [name for name, processor in processors.items() if type(processor).__name__.startswith("PAG")]
    if not left or "PAG" in type(pipe).__name__:
        yield
        return
    model.set_attn_processor(processors | {name: AttnProcessor2_0() for name in left})
    try:
        yield
    finally:
        model.set_attn_processor(processors)


def _arguments(pipe: typing.Any, prompts: list[str], sampling: CallArguments, seed: int) -> dict[str, typing.Any]:
    """Return the arguments of the pipeline's call.

    Raise InputError if ``sampling`` turns guidance off, or if a prompt is not a class of a class-conditional model.
    """
    family = family_of(pipe)
    scale = family.guidance_argument
    own = family.reading_arguments(pipe, prompts)
    own["generator"] = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    arguments = own | {"num_inference_steps": STEPS, scale: family.reading_guidance} | dict(sampling)
    if not arguments[scale] > 1:
        raise InputError(
            f"sampling[{scale!r}] is {arguments[scale]}; it must be above 1, so that the denoiser also runs without "
            "the prompt"
        )
    has_ip_adapter = getattr(getattr(pipe, "unet", None), "encoder_hid_proj", None) is not None
    if has_ip_adapter and not set(arguments) & {"ip_adapter_image", "ip_adapter_image_embeds"}:
        raise InputError(
            "sampling needs ip_adapter_image, because an IP-Adapter is loaded; or attach before loading the IP-Adapter"
        )
    return arguments | {name: own[name] for name in OWN_ARGUMENTS if name in own}
