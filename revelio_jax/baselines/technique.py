"""Techniques of eval-unlearn, for example ``concept_steerers`` and ``saeuron``, if that package is installed.

A technique loads its own pipeline, and the two named ones load it from packages of their own. The reverse, steering as
a technique inside eval-unlearn, is in :mod:`revelio_jax.benchmark.eval_unlearn`.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import typing
from collections.abc import Generator, Mapping, Sequence

import numpy as np

from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import check_phrases, check_text
from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import Samples
from revelio_jax.steering.compatibility import same_model

NAME = "technique"


@dataclasses.dataclass(frozen=True)
class Technique:
    """``name``: a technique that eval-unlearn registers. ``config``: fields of its config, for example multiplier.

    ``erase_concept`` and ``device`` are set to the phrases and to the device of the pipeline, unless ``config`` has
    them. ``other_model``: allow a technique whose model has another name than the loaded pipeline.
    """

    name: str
    config: typing.Any = dataclasses.field(default_factory=dict[str, typing.Any])
    other_model: bool = False

    def __post_init__(self):
        check_text("name", self.name)
        if not isinstance(self.config, Mapping):
            raise InputError(f"config is {self.config!r}; it must be a mapping of the technique's fields")
        if importlib.util.find_spec("eval_unlearn") is None:
            raise InputError(f"name is {self.name!r}, a technique of eval-unlearn: pip install eval-unlearn")


@contextlib.contextmanager
def technique(pipe: typing.Any, phrases: Sequence[str], settings: Technique) -> Generator[Sampler]:
    """Yield a sampler of a technique of eval-unlearn, which calls it once per image.

    Raise InputError if the technique is not registered, refuses its config, or samples another model.
    """
    check_phrases(phrases)
    made = _make(pipe, phrases, settings)

    def sampler(prompts: list[str], seeds: list[int], **arguments: typing.Any) -> Samples:
        scales = np.broadcast_to(np.asarray(arguments["guidance"], float), len(prompts))
        height, width = arguments["height"], arguments["width"]
        images: list[np.ndarray] = []
        for prompt, seed, scale in zip(prompts, seeds, scales.tolist(), strict=True):
            (image,) = made.generate(
                [prompt],
                seed=seed,
                num_inference_steps=arguments["steps"],
                guidance_scale=scale,
                height=height,
                width=width,
            )
            if image.size != (width, height):
                raise InputError(f"the technique {settings.name} sampled {image.size}; it must be {(width, height)}")
            images.append(np.asarray(image.convert("RGB")))
            if arguments.get("progress") is not None:
                arguments["progress"].update(1)
        return Samples(np.stack(images), np.zeros(len(prompts), bool))

    yield sampler


def _make(pipe: typing.Any, phrases: Sequence[str], settings: Technique) -> typing.Any:
    importlib.import_module("eval_unlearn.techniques")  # registers those whose packages are installed
    registry = importlib.import_module("eval_unlearn.registry")
    try:
        cls = registry.get_technique(settings.name)
    except ValueError as error:
        raise InputError(
            f"name is {settings.name!r}; eval-unlearn does not register it, because the package of the technique is "
            f"not installed or the name is wrong: {error}"
        ) from error
    models = importlib.import_module("eval_unlearn.techniques._base_models")
    model = models.get_technique_base_model_id(settings.name, dict(settings.config))
    if model and pipe.name_or_path and not same_model(model, pipe.name_or_path) and not settings.other_model:
        raise InputError(
            f"the technique {settings.name} samples {model!r}, and the loaded pipeline is {pipe.name_or_path!r}; if "
            "they are the same model, set other_model=True"
        )
    defaults = {"erase_concept": ", ".join(phrases), "device": pipe._execution_device.type}
    try:
        return cls(**defaults | dict(settings.config))
    except (ValueError, TypeError) as error:
        raise InputError(f"the technique {settings.name} refuses its config: {error}") from error
