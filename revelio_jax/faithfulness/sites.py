"""The rows to replace at a hook point: token positions, timesteps, and whether they are outputs minus inputs."""

import dataclasses
import typing

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, tokens
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.steering.compatibility import hook_points_of, refuse_unused
from revelio_jax.steering.sae import Sae


@dataclasses.dataclass(frozen=True)
class Site:
    """Hook points whose activations are replaced together, and which of their rows.

    ``positions`` is all, no_padding or content. ``timesteps`` are those of the rows of a denoiser; empty means all.
    ``difference``: the rows are the output minus the input of the module.
    """

    name: str
    points: tuple[HookPoint, ...]
    positions: str = "all"
    timesteps: tuple[int, ...] = ()
    difference: bool = False

    @property
    def is_text(self) -> bool:
        """Return whether the hook points are in text encoders."""
        return not hook_points.is_denoiser_point(self.points[0].name)


def scanned_site(pipe: typing.Any, name: str, positions: str = "auto") -> Site:
    """Return a hook point without an SAE; ``positions`` is config.extract.positions.

    Raise InputError if the pipeline does not have it, or if no output depends on it.
    """
    points = hook_points.resolve_joined(pipe, name)
    refuse_unused(pipe, points)
    site = Site(name, points)
    rule = tokens.position_rule(positions, name) if site.is_text else "all"
    return dataclasses.replace(site, positions=rule)


def trained_site(pipe: typing.Any, sae: Sae, config: Config) -> Site:
    """Return the hook points of an SAE with the rows that it was trained on.

    The SAE names its positions and whether it reads differences; the timesteps are those of ``config.extract``. Raise
    InputError if the SAE does not belong to the pipeline, if no output depends on a hook point, or if the SAE was
    trained on means over positions.
    """
    points = hook_points_of(sae, pipe)
    site = Site(sae.site, points, difference=sae.reads_difference)
    extract = config.extract
    if site.is_text:
        positions = sae.metadata.get("positions", "auto")
        if positions not in tokens.KEPT:  # of another library, or of stores with several rules
            positions = tokens.position_rule("auto", sae.site)
        site = dataclasses.replace(site, positions=positions)
    else:
        if extract.pool == "mean":
            raise InputError(
                f"config.extract.pool is 'mean'; it must be none: an SAE of means over the positions of {sae.site} "
                "does not reconstruct the positions, so it cannot be spliced"
            )
        site = dataclasses.replace(site, timesteps=extract.timesteps)
    refuse_unused(pipe, points)
    return site


def schedule(pipe: typing.Any, steps: int, size: tuple[int, int]) -> list[int]:
    """Return the rounded timesteps of ``steps`` denoising steps; ``size`` is height and width in pixels."""
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    latent = (pipe.vae.config.latent_channels, size[0] // factor, size[1] // factor)
    family_of(pipe).set_timesteps(scheduler, steps, latent)
    return [round(float(timestep)) for timestep in scheduler.timesteps]
