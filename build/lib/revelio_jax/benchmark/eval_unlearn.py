"""Steering as a technique of eval-unlearn, which compares ways to make a model forget a concept.

Where both are installed, eval-unlearn finds it by its entry point and knows it as ``revelio_jax``:

    {"technique": {"name": "revelio_jax", "config": {"erase_concept": "nudity", "sae": "owner/name"}},
     "metrics": [{"name": "asr_i2p", "config": {"concept_name": "nudity"}}]}

Nothing of eval-unlearn is imported here: a technique is what has ``generate``.
"""

import typing

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from revelio_jax import shipped
from revelio_jax.errors import InputError
from revelio_jax.steering.steerer import Steerer


class SteererTechnique:
    """A pipeline in which a concept is steered away.

    ``erase_concept`` is the text that says it, ``sae`` a folder or hub id, with ``site``, ``subfolder``
    and ``revision`` as in :meth:`Steerer.from_pretrained`. ``strength`` below 0 removes, 0 is the plain
    pipeline. ``model_id`` is by default the model that the SAE was trained on; float16 is for cuda alone.
    Raises InputError where they do not fit together.
    """

    def __init__(
        self,
        *,
        erase_concept: str,
        sae: str,
        strength: float = -1.0,
        rule: str = "auto",
        site: str | None = None,
        subfolder: str = "",
        revision: str | None = None,
        model_id: str = "",
        device: str = "",
        use_fp16: bool = True,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
    ):
        if not erase_concept.strip():
            raise InputError("erase_concept is empty; it is a text that says the concept")
        self.steerer = Steerer.from_pretrained(sae, site=site, subfolder=subfolder, revision=revision)
        chosen, model_id = model_id, model_id or self.steerer.sae.metadata.get("model_id", "")
        if not model_id:
            raise InputError("model_id is empty, and the SAE does not say which model it was trained on")
        device = device or _device()
        half = use_fp16 and device.startswith("cuda")
        self.pipe = DiffusionPipeline.from_pretrained(
            shipped.locate(model_id), torch_dtype=torch.float16 if half else torch.float32
        ).to(device)
        self.pipe.set_progress_bar_config(disable=True)
        if getattr(self.pipe, "safety_checker", None) is not None:  # or its black pictures would be counted
            self.pipe.register_modules(safety_checker=None)
        self.concepts, self.rule = {erase_concept: strength}, rule
        self.is_chosen = bool(chosen)
        self.sampling = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        with self._attached():  # what does not fit is said before the first prompt
            pass

    def generate(self, prompts: list[str], seed: int | None = None, **kwargs: typing.Any) -> list[Image.Image]:
        """A picture a prompt; prompt i has the seed ``seed`` + i. ``kwargs`` go to the pipeline."""
        pictures = []
        with self._attached():
            for i, prompt in enumerate(prompts):
                generator = None if seed is None else torch.Generator("cpu").manual_seed(seed + i)
                made = self.pipe(prompt, generator=generator, **self.sampling | kwargs)
                pictures.append(made.images[0])
        return pictures

    def _attached(self) -> typing.ContextManager:
        return self.steerer.attach(self.pipe, self.concepts, rule=self.rule, other_model=self.is_chosen)


def _device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
