"""Hook points of diffusers pipelines by name.

Layers count from 0; a hook point is the residual stream AFTER that layer.

    sd      clip.layer.N                        unet.mid_block, unet.up_blocks.I,
    sdxl    clip_l.layer.N, clip_g.layer.N      unet.mid_block.attentions.J, unet.up_blocks.I.attentions.J,
                                                unet.down_blocks.I.attentions.J
    flux    clip.layer.N, t5.block.N            flux.double.N.image, flux.double.N.text,
                                                flux.single.N.image, flux.single.N.text
    dit                                         dit.block.N
    text    text.layer.N, of a text encoder without a pipeline

:mod:`revelio_jax.pipelines.families` defines the hook points of each family.
"""

import re
import typing

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import denoiser_prefixes, family_of
from revelio_jax.pipelines.hooks import HookPoint


def is_denoiser_point(name: str) -> bool:
    """Return whether a name has the form of a denoiser's hook point."""
    return name.partition(".")[0] in denoiser_prefixes()


def point_names(pipe: typing.Any) -> list[str]:
    """Return the names of all hook points of the components that the pipeline holds."""
    return [hook_point.name for hook_point in family_of(pipe).hook_points(pipe)]


def resolve(pipe: typing.Any, name: str) -> HookPoint:
    """Return a hook point by its name. Raise InputError with the known names if it is unknown."""
    for hook_point in family_of(pipe).hook_points(pipe):
        if hook_point.name == name:
            return hook_point
    raise InputError(
        f"unknown hook point {name!r}; this {family_of(pipe).name} pipeline has {abbreviate(point_names(pipe))}"
    )


def resolve_joined(pipe: typing.Any, name: str) -> tuple[HookPoint, ...]:
    """Return the hook points of a name such as clip_l.layer.10+clip_g.layer.28; their widths add up."""
    return tuple(resolve(pipe, part) for part in name.split("+"))


def abbreviate(names: list[str]) -> str:
    """Return names in one line, with consecutive numbers as a range: clip.layer.0-11, unet.mid_block."""
    groups: dict[str, list[int]] = {}
    for name in names:
        numbers = re.findall(r"\.(\d+)", name)
        # The last number counts up; earlier numbers belong to the group's name.
        match = re.match(r"(.*\.)?\d+(.*)", name)
        head, tail = match.groups() if match else (name, "")
        groups.setdefault(f"{head}#{tail}" if numbers else name, []).append(int(numbers[-1]) if numbers else 0)
    shown = []
    for pattern, numbers in groups.items():
        first, last = numbers[0], numbers[-1]
        shown.append(pattern.replace("#", f"{first}" if first == last else f"{first}-{last}"))
    return ", ".join(shown)
