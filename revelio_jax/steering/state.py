"""The state of one steered pipeline: its attachments and hooks, and the call in progress."""

import contextlib
import dataclasses
import threading
import typing
from collections.abc import Callable, Generator, Hashable

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.branches import Branches
from revelio_jax.pipelines.families import Family
from revelio_jax.steering.attachment import Attachment
from revelio_jax.steering.provenance import Provenance
from revelio_jax.steering.steering_hook import SteeringHook

PLAIN = "plain"
"""The value of ``SteeringState.encoded_branch`` while components run without steering."""


@dataclasses.dataclass
class Call:
    """A call of the pipeline in progress.

    ``arguments`` include the defaults. ``branches`` has the embeddings of each branch of guidance. The last item of
    ``named_branches`` is the branch that the pipeline names for the current pass of its denoiser, or None.
    ``encoded`` counts the prompts that the pipeline encoded one by one. ``passes`` counts the passes of each component,
    and ``timesteps`` has those of the denoiser's passes. ``image_grid`` is the height and width of the image in
    positions of the denoiser, and ``reference`` the positions of reference images, found in ``reference_ids``.
    """

    arguments: dict[str, typing.Any]
    named_branches: list[str | None]
    branches: Branches = dataclasses.field(default_factory=Branches)
    encoded: int = 0
    passes: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    timesteps: list[float] = dataclasses.field(default_factory=list[float])
    image_grid: tuple[int, int] | None = None
    reference: torch.Tensor | None = None
    reference_ids: torch.Tensor | None = None


@dataclasses.dataclass(eq=False)
class SteeringState:
    """The attachments and hooks of one pipeline, and the call in progress.

    ``pipeline_class`` is the class of ``pipe`` while nothing is attached. ``hooks`` maps names of hook points to hooks.
    ``unwatch`` maps components to functions that stop preparing their passes. ``encoded_branch`` is the branch of
    guidance whose prompt the text encoders are encoding, PLAIN while components run unsteered, None otherwise.
    ``provenance`` has the embeddings that were encoded with steering. ``foreign_passes`` counts passes of steered
    components outside of calls of this pipeline. ``thread`` runs the pipeline; other threads may run pipelines that
    share components with it.
    """

    pipe: typing.Any
    pipeline_class: typing.Any
    family: Family
    attachments: list[Attachment] = dataclasses.field(default_factory=list[Attachment])
    hooks: dict[str, SteeringHook] = dataclasses.field(default_factory=dict[str, SteeringHook])
    unwatch: dict[str, Callable[[], None]] = dataclasses.field(default_factory=dict[str, Callable[[], None]])
    encoded_branch: str | None = None
    call: Call | None = None
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    foreign_passes: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    thread: int | None = None

    @contextlib.contextmanager
    def owned(self) -> Generator[None]:
        """Steer only passes of this thread in the block. Raise InputError if another thread uses the pipeline."""
        outer, current = self.thread, threading.get_ident()
        if outer not in (None, current):
            raise InputError(f"this {self.name} is steered and runs in another thread; use one pipeline per thread")
        self.thread = current
        try:
            yield
        finally:
            self.thread = outer

    def __deepcopy__(self, _memo: object) -> None:
        return None  # a copy of the pipeline is not steered

    @property
    def name(self) -> str:
        """Return the name of the pipeline's class."""
        return self.pipeline_class.__name__

    def text_attachments(self) -> list[Attachment]:
        """Return the attachments at text encoders."""
        return [
            attachment
            for attachment in self.attachments
            if not hook_points.is_denoiser_point(attachment.points[0].name)
        ]

    @property
    def steers_text(self) -> bool:
        """Return whether a text encoder is steered or watched."""
        return any(not hook_points.is_denoiser_point(name) for name in self.hooks)

    def text_version(self) -> int:
        """Return a number that changes with the strengths at text encoders."""
        strengths: list[Hashable] = [
            (id(attachment), tuple(attachment.strengths.items())) for attachment in self.text_attachments()
        ]
        return hash(tuple(strengths))

    def deactivate_hooks(self) -> None:
        """Make all hooks inactive."""
        for hook in self.hooks.values():
            hook.active, hook.watched = (), None
