"""The phrases of the concept as negative prompt: the prediction for them replaces the unconditional one."""

import contextlib
import dataclasses
import typing
from collections.abc import Generator, Sequence

from revelio_jax.baselines import concept
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import check_guidance, check_phrases, check_text, check_unconditional_branch
from revelio_jax.pipelines.sampling import Samples, sample

NAME = "negative_prompt"


@dataclasses.dataclass(frozen=True)
class NegativePrompt:
    """``existing``: a negative prompt that the phrases are appended to, for example one about image quality."""

    existing: str = ""

    def __post_init__(self):
        check_text("existing", self.existing)


@contextlib.contextmanager
def negative_prompt(pipe: typing.Any, phrases: Sequence[str], settings: NegativePrompt) -> Generator[Sampler]:
    """Yield a sampler whose negative prompt is the phrases of the concept.

    Raise InputError if the pipeline has no unconditional branch. The sampler raises it if a guidance scale is at most
    1, because the negative prompt would not be read.
    """
    check_phrases(phrases)
    check_unconditional_branch(NAME, pipe)
    text = concept.joined(pipe, [settings.existing, *phrases] if settings.existing.strip() else phrases)

    def sampler(prompts: list[str], seeds: list[int], **arguments: typing.Any) -> Samples:
        check_guidance(NAME, arguments["guidance"])
        return sample(pipe, prompts, seeds, extra=lambda batch: {"negative_prompt": [text] * len(batch)}, **arguments)

    yield sampler
