"""A text at a site of the denoiser, which it reaches only beside a noisy picture.

The pipeline samples the text with guidance, so that its denoiser sees every noisy picture twice: with the
prompt and without it. What a latent is in the one and not in the other is what the text does. So a text
becomes a concept as at a text encoder, but for positions, which mean nothing here: its codes are means
over steps, pictures and positions.
"""

import contextlib
import typing
from collections.abc import Callable, Mapping

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import guidance, hook_points
from revelio_jax.pipelines.families import BY_NAME
from revelio_jax.pipelines.guidance import CONDITIONAL, UNCONDITIONAL
from revelio_jax.steering.concept import GATE, EncodedConcept, own_latents, presence
from revelio_jax.steering.learned_concepts import Learned
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.session import unsteered

PICTURES, STEPS = 4, 10  # that a text is read off, unless it is told otherwise
TOGETHER = 16  # prompts that are sampled in one batch
GUIDANCE = {"sd": 5.0, "sdxl": 5.0, "flux": 3.0, "dit": 4.0}

Sampling = Mapping[str, typing.Any]
"""Arguments of the pipeline's call, such as height, width and num_inference_steps."""
See = Callable[[str, torch.Tensor], typing.Any]
"""Branch of guidance and activations [B, T, D], float32, of one pass of the denoiser."""


@torch.no_grad()
def watch(
    pipe: typing.Any,
    site: hook_points.HookPoint,
    prompts: list[str],
    see: See,
    sampling: Sampling | None = None,
    seed: int = 0,
    difference: bool = False,
) -> None:
    """Sample ``prompts`` without any steering, and show ``see`` the site in every pass and branch.

    With ``difference`` it sees the module's output minus its input. Raises InputError where the
    arguments leave no branch without the prompt.
    """
    layout = hook_points.family(pipe)
    given = _arguments(pipe, layout, prompts, dict(sampling or {}), seed)

    def after(args: tuple, kwargs: dict, output: typing.Any) -> None:
        x_BTD = site.read(output).float()
        if difference:
            x_BTD = x_BTD - site.read_input(args, kwargs).float()
        if layout == "flux":
            see(told[-1] or CONDITIONAL, x_BTD)
            return
        for branch, rows in BY_NAME[layout].branches(len(x_BTD), guided=True).items():
            see(branch, x_BTD[rows])

    with contextlib.ExitStack() as stack:
        stack.enter_context(unsteered(pipe))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        told = stack.enter_context(guidance.told(getattr(pipe, site.component)))
        stack.callback(hook_points.after(site.module, after))
        pipe(**given)


def encode_sampled(
    pipe: typing.Any,
    site_name: str,
    sae_on: Callable[[torch.device], Sae],
    text: str,
    learned: Learned | None = None,
    sampling: Sampling | None = None,
    difference: bool = False,
) -> EncodedConcept:
    """Encode a concept by sampling its text: codes and empty are [1, F]."""
    site = hook_points.resolve(pipe, site_name)
    sums: dict[str, list[torch.Tensor]] = {}
    held: list[torch.Tensor] = []
    found: Learned | None = learned

    def add(branch: str, x_BTD: torch.Tensor) -> None:
        sae = sae_on(x_BTD.device)
        means = [codes(x_BTD).mean((0, 1))[None] for codes in (sae.pre_codes, sae.codes)]
        sums[branch] = [a + b for a, b in zip(sums.get(branch, (0.0, 0.0)), means, strict=True)]
        counts[branch] = counts.get(branch, 0) + 1

    def hold(branch: str, x_BTD: torch.Tensor) -> None:
        if branch == CONDITIONAL:
            held.append(presence(sae_on(x_BTD.device).codes(x_BTD), found.latents))

    counts: dict[str, int] = {}
    for seed in range(PICTURES):
        watch(pipe, site, [text], add, sampling, seed, difference)
    (codes, sparse), (empty, sparse_empty) = (
        [total / counts[branch] for total in sums[branch]] for branch in (CONDITIONAL, UNCONDITIONAL)
    )
    if found is None:
        found = Learned(own_latents(sparse, sparse_empty), sparse - sparse_empty, 0.0)
        watch(pipe, site, [text], hold, sampling, PICTURES, difference)
        found = Learned(found.latents, found.difference, GATE * float(torch.cat(held).median()))
    elif len(found.difference) != 1:
        raise InputError(f"what was learned of {text!r} is of a text encoder, not of {site_name}")
    return EncodedConcept(text, codes, empty, found.to(codes.device))


def sample_prompts(
    pipe: typing.Any,
    site_name: str,
    prompts: list[str],
    see: Callable[[torch.Tensor], typing.Any],
    sampling: Sampling | None = None,
    difference: bool = False,
) -> None:
    """Show ``see`` the site while a picture of every prompt is sampled, where the denoiser sees them."""
    site = hook_points.resolve(pipe, site_name)
    for start in range(0, len(prompts), TOGETHER):
        watch(
            pipe,
            site,
            prompts[start : start + TOGETHER],
            lambda branch, x_BTD: see(x_BTD) if branch == CONDITIONAL else None,
            sampling,
            start,
            difference,
        )


def sampled_mean(
    pipe: typing.Any, site_name: str, prompts: list[str], sampling: Sampling | None = None
) -> torch.Tensor:
    """The mean of the site over prompts, steps and positions: [1, D]."""
    means: list[torch.Tensor] = []
    sample_prompts(pipe, site_name, prompts, lambda x_BTD: means.append(x_BTD.mean((0, 1))), sampling)
    return torch.stack(means).mean(0, keepdim=True)


def _arguments(
    pipe: typing.Any, layout: str, prompts: list[str], given: dict[str, typing.Any], seed: int
) -> dict[str, typing.Any]:
    scale = "true_cfg_scale" if layout == "flux" else "guidance_scale"
    given = {"num_inference_steps": STEPS, scale: GUIDANCE[layout]} | given
    if not given[scale] > 1:
        raise InputError(
            f"sampling has {scale} {given[scale]}; it must be above 1, so that the denoiser also runs "
            "without the prompt"
        )
    given["generator"] = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    if layout == "dit":
        try:
            return given | {"class_labels": pipe.get_label_ids(prompts), "output_type": "np"}
        except ValueError as error:
            raise InputError(f"{prompts} are no classes of this model: {error}") from error
    if layout == "flux":
        length = min(512, pipe.tokenizer_2.model_max_length)
        given = {"max_sequence_length": length, "negative_prompt": [""] * len(prompts)} | given
    return given | {"prompt": prompts, "output_type": "latent"}
