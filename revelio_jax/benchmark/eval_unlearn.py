"""Offer steering as a technique of eval-unlearn, a benchmark of methods that make a model forget a concept.

If both packages are installed, eval-unlearn finds the technique by its entry point, under the name ``revelio_jax``:

    {"technique": {"name": "revelio_jax", "config": {"erase_concept": "nudity", "sae": "owner/name"}},
     "metrics": [{"name": "asr_i2p", "config": {"concept_name": "nudity"}}]}

This module does not import eval-unlearn, because a technique is any class with a method ``generate``.
"""

import typing

import torch
from PIL import Image

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import devices
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.source import find_family
from revelio_jax.steering import Attachment
from revelio_jax.steering.steerer import ConceptKey, Steerer
from revelio_jax.steering.strengths import Strength


class SteererTechnique:
    """A pipeline that is steered to remove a concept.

    ``erase_concept`` is the text of the concept. ``sae`` is a folder or hub id; ``site``, ``subfolder`` and
    ``revision`` are passed to :meth:`Steerer.from_pretrained`. A ``strength`` below 0 removes the concept; 0 gives the
    plain pipeline. ``model_id`` defaults to the model that the SAE was trained on. ``device`` defaults to the first
    available one of cuda, mps and cpu. ``use_fp16`` applies only to cuda. Raise InputError if an argument is invalid
    or the SAE does not fit the model.
    """

    def __init__(  # more than 9 parameters, because eval-unlearn passes its JSON config as keywords
        self,
        *,
        erase_concept: str,
        sae: str,
        strength: float = -1.0,
        rule: str = "auto",
        site: str | None = None,
        subfolder: str = "",
        revision: str | None = None,
        model_id: str | None = None,
        device: str | None = None,
        use_fp16: bool = True,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
    ):
        if not erase_concept.strip():
            raise InputError("erase_concept is empty; it must be the text of the concept")
        self.steerer = Steerer.from_pretrained(sae, site=site, subfolder=subfolder, revision=revision)
        self.is_other_model = bool(model_id)
        model_id = model_id or self.steerer.sae.metadata.get("model_id")
        if not model_id:
            raise InputError("model_id is not set, and the SAE does not name its model; set it to a folder or a hub id")
        chosen = devices.device(device or "auto")
        half = use_fp16 and chosen.type == "cuda"
        family, dtype = find_family(model_id, None), "float16" if half else "float32"
        self.pipe: typing.Any = load_pipeline(ModelConfig(id=model_id, family=family, dtype=dtype, device=str(chosen)))
        self.concepts: dict[ConceptKey, Strength] = {erase_concept: strength}
        self.rule = rule
        self.sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        with self._attach():  # fail before the first prompt if the SAE does not fit
            pass

    def generate(self, prompts: list[str], seed: int | None = None, **kwargs: typing.Any) -> list[Image.Image]:
        """Return one image per prompt, prompt i from seed ``seed`` + i. ``kwargs`` go to the pipeline's call."""
        images = []
        with self._attach():
            for i, prompt in enumerate(prompts):
                generator = None if seed is None else torch.Generator("cpu").manual_seed(seed + i)
                output = self.pipe(prompt, generator=generator, **self.sampling | kwargs)
                images.append(output.images[0])
        return images

    def _attach(self) -> typing.ContextManager[Attachment]:
        return self.steerer.attach(self.pipe, self.concepts, rule=self.rule, other_model=self.is_other_model)
