"""SAFREE (Yoon et al., ICLR 2025, arXiv 2410.12761): project trigger tokens out of the concept's subspace.

The first steps use the changed embeddings of the prompt, later steps the original ones. The U-Net's skip connections
are re-attended. :mod:`revelio_jax.baselines.safree.equations` has the equations of the paper and of the released code.
"""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Generator, Sequence

import torch

from revelio_jax.baselines import concept
from revelio_jax.baselines.safree.denoiser import PromptFilter, filtering
from revelio_jax.baselines.safree.equations import away_from_concept, basis, filtered_steps, triggers
from revelio_jax.baselines.safree.text import PooledText
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import (
    MODES,
    PAPER,
    RELEASED,
    check_bool,
    check_choice,
    check_family,
    check_guidance,
    check_number,
    check_phrases,
    check_unconditional_branch,
    check_whole,
)
from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.sampling import Samples, sample

NAME = "safree"
FAMILIES = ("sd", "sdxl")


@dataclasses.dataclass(frozen=True)
class Safree:
    """Published defaults. An infinite ``alpha`` changes no token, so mode paper gives the plain pipeline.

    ``alpha``: how much larger than the others' mean the distance of a trigger is. ``steps_bound``: upper bound of the
    steps with changed embeddings. ``calibration``: k and m of mode released; artists use (3.5, 5.5). ``reattention``:
    evaluate a third row per image; in mode released it changes no image, but costs as much time as in that code.
    ``skip_scales``: factors of the low frequencies of the skip connections at the widest and the next stage.
    """

    mode: str = "paper"
    alpha: float = 0.01
    steps_bound: int = 10
    calibration: tuple[float, float] = (2.5, 5.333)
    reattention: bool = True
    skip_scales: tuple[float, float] = (0.9, 0.2)

    def __post_init__(self):
        check_choice("mode", self.mode, MODES)
        check_number("alpha", self.alpha, 0)
        check_whole("steps_bound", self.steps_bound, 0)
        check_bool("reattention", self.reattention)
        for name in ("calibration", "skip_scales"):
            values: typing.Any = getattr(self, name)
            if not isinstance(values, tuple | list) or len(values) != 2:
                raise InputError(f"{name} is {values!r}; it must be two numbers")
            for value in values:
                check_number(name, value, 0)


@contextlib.contextmanager
def safree(pipe: typing.Any, phrases: Sequence[str], settings: Safree) -> Generator[Sampler]:
    """Yield a sampler that filters trigger tokens of the prompts.

    Mode released also takes the phrases as negative prompt, and on SDXL it changes the embeddings in all steps and adds
    no third row, as that code does. Raise InputError if the pipeline is neither of the family sd nor sdxl.
    """
    check_phrases(phrases)
    check_family(NAME, pipe, FAMILIES)
    text = PooledText(pipe)
    if not text.has_one_width:
        raise InputError(
            f"{NAME} does not support this {type(pipe).__name__}, whose pooled vectors and token embeddings differ in "
            "width"
        )
    is_paper, is_sdxl = settings.mode == PAPER, family_of(pipe).pooled is not None
    if not is_paper:
        check_unconditional_branch(f"{NAME} with mode={RELEASED}", pipe)
    negative = "" if is_paper else concept.joined(pipe, phrases)
    with torch.no_grad():
        concept_RD = basis(text.phrases(phrases))
    prompt_filter = PromptFilter(
        reattention=settings.reattention and (is_paper or not is_sdxl),
        always_extra=not is_paper,
        scales=settings.skip_scales if is_paper and settings.reattention else None,
    )

    def changed(prompts: list[str], texts_BTD: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        pairs = [change_prompt(text, each, x, concept_RD, settings) for each, x in zip(prompts, texts_BTD, strict=True)]
        steps = [count if is_paper or not is_sdxl or not count else math.inf for _, count in pairs]
        return torch.stack([embeddings for embeddings, _ in pairs]), steps

    def sampler(prompts: list[str], seeds: list[int], **arguments: typing.Any) -> Samples:
        if not is_paper:
            check_guidance(f"{NAME} with mode={RELEASED}", arguments["guidance"])

        def extra(batch: list[int]) -> dict[str, typing.Any]:
            chosen = [prompts[i] for i in batch]
            prompt_filter.start(len(batch), lambda texts: changed(chosen, texts))
            return {} if is_paper else {"negative_prompt": [negative] * len(batch)}

        with filtering(pipe.unet, prompt_filter):
            return sample(pipe, prompts, seeds, extra=extra, **arguments)

    try:
        yield sampler
    finally:
        pipe.maybe_free_model_hooks()


def change_prompt(
    text: PooledText, prompt: str, x_TD: torch.Tensor, concept_RD: torch.Tensor, settings: Safree
) -> tuple[torch.Tensor, int]:
    """Return the changed embeddings of a prompt, and for how many steps they are used: 0 without trigger tokens.

    ``x_TD`` are the pipeline's embeddings of the prompt; begin, end and padding do not change.
    """
    masked_ND = text.without_each_token(prompt, settings.mode)
    count = len(masked_ND)
    is_trigger = triggers(masked_ND, concept_RD, settings.alpha, settings.mode)
    if not is_trigger.any():
        return x_TD, 0
    before = x_TD[:, text.columns].cpu().double()
    after = away_from_concept(before, concept_RD, basis(masked_ND), settings.mode)
    calibration = None if settings.mode == PAPER else settings.calibration
    steps = filtered_steps(before[: count + 2], after[: count + 2], settings.steps_bound, calibration)
    positions = 1 + is_trigger.nonzero()[:, 0]
    changed = x_TD.clone()
    changed[positions, text.columns] = after[positions].to(x_TD)
    return changed, steps
