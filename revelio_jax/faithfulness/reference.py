"""Record the activations of reference samples, as means and rows, where a patch will replace them."""

import contextlib
import inspect
import typing
from collections.abc import Sequence

import torch

from revelio_jax.faithfulness import figures, patches
from revelio_jax.faithfulness.experiment import Inputs, Prompts, noised_images, sample_prompts, settings_of
from revelio_jax.faithfulness.means import ActivationMeans
from revelio_jax.faithfulness.sites import Site
from revelio_jax.pipelines import hooks, tokens
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.guidance import CONDITIONAL
from revelio_jax.steering import session
from revelio_jax.steering.concept import is_masked, tokenizer_of
from revelio_jax.steering.steering_hook import Pass

Means = dict[str, ActivationMeans]
"""The means of each site, by its name."""


def record(
    pipe: typing.Any, sites: Sequence[Site], inputs: Inputs, loss_timesteps: tuple[int, ...], keep_rows: int = 0
) -> Means:
    """Return the means of ``sites`` on the reference samples; ``keep_rows`` rows of each are kept.

    Text encoders run on the reference prompts. Denoisers run while images of the reference prompts are sampled, or on
    the reference images if activations are extracted from images: with an SAE, rows are then those of its training.
    """
    means = {site.name: ActivationMeans(keep_rows) for site in sites}
    seed = inputs.flags["seed"] + len(inputs.measured)
    prompts = settings_of(inputs.reference, inputs.config, seed) if inputs.reference else None
    in_denoiser = [site for site in sites if not site.is_text]
    for site in sites:
        if site.is_text and prompts is not None:
            _record_texts(pipe, site, prompts, inputs.config.steer.guidance, means[site.name])
    if not in_denoiser:
        return means
    if inputs.reference_images is not None:
        _record_images(pipe, in_denoiser, inputs, loss_timesteps, means)
    elif prompts is not None:
        _record_sampling(pipe, in_denoiser, prompts, inputs, means)
    return means


@torch.inference_mode()
def _record_texts(pipe: typing.Any, site: Site, prompts: Prompts, guidance: float, means: ActivationMeans) -> None:
    """Add the rows of the prompts, one at a time. Joined hook points have one row of their joined widths."""
    component = site.points[0].component
    encoder, tokenizer = getattr(pipe, component), tokenizer_of(pipe, component)
    signature = inspect.signature(getattr(encoder, "_orig_mod", encoder).forward)
    masks: list[torch.Tensor] = []

    def read_tokens(args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any]) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        arguments = arguments | arguments.get("kwargs", {})
        attended = arguments.get("attention_mask") if is_masked(encoder) else None
        kinds = tokens.kinds(
            arguments["input_ids"].cpu().numpy(), tokenizer, None if attended is None else attended.cpu().numpy()
        )
        masks.append(torch.isin(torch.from_numpy(kinds), torch.tensor(tokens.KEPT[site.positions], dtype=torch.int8)))

    for text in prompts.texts:
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(hooks.capture(point)) for point in site.points]
            stack.callback(hooks.before_forward(encoder, read_tokens))
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code would lack these hooks
            family_of(pipe).conditioning(pipe, text, guidance, prompts.size)
        x_BTD = torch.cat([output[-1].to(outputs[0][-1].device) for output in outputs], dim=-1)
        means.add(x_BTD, None, masks[-1])


def _record_sampling(pipe: typing.Any, sites: Sequence[Site], prompts: Prompts, inputs: Inputs, means: Means) -> None:
    """Add the conditional rows of the trained timesteps while images are sampled."""
    by_point = {site.points[0].name: site for site in sites}
    scale = family_of(pipe).timestep_scale

    def add(name: str, current: Pass, x_BTD: torch.Tensor) -> None:
        site = by_point[name]
        if patches.is_trained(current.timestep, site.timesteps, scale):
            is_conditional = torch.tensor([branch == CONDITIONAL for branch in current.branches], device=x_BTD.device)
            if is_conditional.any():
                means[site.name].add(x_BTD[is_conditional], current.timestep)

    points = [site.points[0] for site in sites]
    with session.watching(pipe, points, add, difference=sites[0].difference):
        sample_prompts(pipe, prompts, inputs.config, "reference images")


def _record_images(
    pipe: typing.Any, sites: Sequence[Site], inputs: Inputs, timesteps: tuple[int, ...], means: Means
) -> None:
    """Add all rows of passes on noised reference images."""
    assert inputs.reference_images is not None
    first_seed = inputs.flags["seed"] + (0 if inputs.images is None else len(inputs.images))
    noised = noised_images(pipe, inputs, inputs.reference_images, timesteps, first_seed)
    with patches.running_clock(pipe) as clock, contextlib.ExitStack() as stack:
        for site in sites:

            def add(
                args: tuple[typing.Any, ...], kwargs: dict[str, typing.Any], output: typing.Any, site: Site = site
            ) -> None:
                point = site.points[0]
                x_BTD = point.read(output).float()
                if site.difference:
                    x_BTD = x_BTD - point.read_input(args, kwargs).float()
                means[site.name].add(x_BTD, clock.timestep)

            stack.callback(hooks.after_forward(site.points[0].module, add))
        figures.denoising_loss(pipe, noised, noised.conditioning(pipe))
