"""The state of one steered pipeline: its attachments and hooks, and the call in progress."""

import dataclasses
import typing
from collections.abc import Callable

from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.families import Family
from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.steering_hook import SteeringHook


@dataclasses.dataclass
class Call:
    """A call of the pipeline in progress.

    ``arguments`` include the defaults. The last item of ``named_branches`` is the branch of guidance that the pipeline
    names for the current pass of its denoiser, or None. ``image_grid`` is the height and width of the image in
    positions of the denoiser; it is computed when a mask first needs it.
    """

    arguments: dict[str, typing.Any]
    named_branches: list[str | None]
    image_grid: tuple[int, int] | None = None


@dataclasses.dataclass(eq=False)
class SteeringState:
    """The attachments and hooks of one pipeline, and the call in progress.

    ``pipeline_class`` is the class of ``pipe`` while nothing is attached. ``hooks`` maps names of hook points to hooks.
    ``unwatch`` maps components to functions that stop preparing their passes. ``encoded_branch`` is the branch of
    guidance whose prompt the text encoders are encoding, None outside of ``encode_prompt``.
    """

    pipe: typing.Any
    pipeline_class: typing.Any
    family: Family
    attachments: list[Attachment] = dataclasses.field(default_factory=list[Attachment])
    hooks: dict[str, SteeringHook] = dataclasses.field(default_factory=dict[str, SteeringHook])
    unwatch: dict[str, Callable[[], None]] = dataclasses.field(default_factory=dict[str, Callable[[], None]])
    encoded_branch: str | None = None
    call: Call | None = None

    @property
    def steers_text(self) -> bool:
        """Return whether a text encoder is steered."""
        return any(not hook_points.is_denoiser_point(name) for name in self.hooks)

    def deactivate_hooks(self) -> None:
        """Make all hooks inactive."""
        for hook in self.hooks.values():
            hook.active = ()
