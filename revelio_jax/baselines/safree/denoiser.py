"""Hooks on a U-Net that give it changed prompt embeddings in the first steps, and re-attend its skip connections."""

import contextlib
import typing
from collections.abc import Callable, Generator

import torch

from revelio_jax.baselines.safree.equations import reattend
from revelio_jax.errors import InputError

Arguments = dict[str, typing.Any]


class PromptFilter:
    """Replaces the prompt embeddings of a U-Net's rows.

    If ``reattention`` is set, each image gets a third row with its original embeddings: in all steps if
    ``always_extra`` is set, otherwise in those with changed embeddings. ``scales`` are the factors of the skip
    connections' low frequencies at the widest and the next stage of the U-Net; None leaves the skip connections alone.
    """

    def __init__(self, reattention: bool, always_extra: bool, scales: tuple[float, float] | None):
        self.reattention, self.always_extra, self.scales = reattention, always_extra, scales
        self.images = 0
        self.step = 0
        self.extra = False
        self.change: Callable[[torch.Tensor], tuple[torch.Tensor, list[float]]] | None = None
        self.changed: torch.Tensor | None = None
        self.steps: list[float] = []

    def start(self, images: int, change: Callable[[torch.Tensor], tuple[torch.Tensor, list[float]]]) -> None:
        """Prepare for the next batch.

        ``change`` maps the embeddings of its prompts [B, T, D] to the changed embeddings, and to the number of steps
        that use them for each prompt. It is called in the first step.
        """
        self.images, self.change, self.step, self.changed = images, change, 0, None

    def enter(self, _unet: torch.nn.Module, args: tuple, kwargs: Arguments) -> tuple[tuple, Arguments]:
        """Change the arguments of the U-Net; a forward pre-hook."""
        kwargs = dict(kwargs)
        texts, count = kwargs["encoder_hidden_states"], self.images
        if len(texts) > 2 * count:
            raise InputError(
                f"safree expects rows of the prompt and of the negative prompt only; this pipeline's U-Net gets "
                f"{len(texts)} rows for {count} images"
            )
        original = texts[-count:]  # after the rows of the negative prompt, if there are any
        if self.changed is None and self.change is not None:
            self.changed, self.steps = self.change(original)
        is_active = torch.tensor([self.step < steps for steps in self.steps], device=texts.device)
        self.step += 1
        self.extra = self.reattention and (self.always_extra or bool(is_active.any()))
        if bool(is_active.any()) and self.changed is not None:
            rows = torch.where(is_active[:, None, None], self.changed, original)
            texts = torch.cat([texts[:-count], rows])
        if self.extra:
            texts = torch.cat([texts, original])
            args = (torch.cat([args[0], args[0][-count:]]), *args[1:])
            added: Arguments = kwargs.get("added_cond_kwargs") or {}
            if added:
                kwargs["added_cond_kwargs"] = {k: torch.cat([v, v[-count:]]) for k, v in added.items()}
        return args, kwargs | {"encoder_hidden_states": texts}

    def leave(self, _unet: torch.nn.Module, _args: tuple, output: typing.Any) -> typing.Any:
        """Remove the rows that were added from the output of the U-Net; a forward hook."""
        if not self.extra:
            return None
        return (output[0][: -self.images], *output[1:])

    def skip(self, block: typing.Any, args: tuple, kwargs: Arguments, widths: list[int]) -> tuple[tuple, Arguments]:
        """Re-attend the skip connections of a block on the way up; a forward pre-hook."""
        if not self.extra or self.scales is None:
            return args, kwargs
        skips, hidden = list(kwargs["res_hidden_states_tuple"]), kwargs["hidden_states"].shape[1]
        for i, resnet in enumerate(block.resnets):
            if hidden in widths:
                features = skips[-1 - i]
                before, changed, original = features.split([len(features) - 2 * self.images, self.images, self.images])
                changed = reattend(changed, original, self.scales[widths.index(hidden)])
                skips[-1 - i] = torch.cat([before, changed, original])
            hidden = resnet.out_channels
        return args, kwargs | {"res_hidden_states_tuple": tuple(skips)}


@contextlib.contextmanager
def filtering(unet: typing.Any, prompts: PromptFilter) -> Generator[None]:
    """Apply a PromptFilter to a U-Net in the block."""
    widths = sorted(set(unet.config.block_out_channels), reverse=True)[:2]
    inner = getattr(unet, "_orig_mod", unet)  # torch.compile wraps a module

    def skip(block: torch.nn.Module, args: tuple, kwargs: Arguments) -> tuple[tuple, Arguments]:
        return prompts.skip(block, args, kwargs, widths)

    with contextlib.ExitStack() as hooks:
        hooks.callback(unet.register_forward_pre_hook(prompts.enter, with_kwargs=True).remove)
        hooks.callback(unet.register_forward_hook(prompts.leave).remove)
        if prompts.scales is not None:
            for block in inner.up_blocks:
                hooks.callback(block.register_forward_pre_hook(skip, with_kwargs=True).remove)
        yield
