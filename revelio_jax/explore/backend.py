"""The pipeline and the SAE of the page: active latents, and images with and without steering.

One image is sampled at a time, for all users together. Images are cached up to a limit.
"""

import collections
import dataclasses
import pathlib
import threading
import typing
from collections.abc import Callable

import numpy as np
import torch

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.explore.activations import ActiveLatents, find_active, grid_of
from revelio_jax.explore.requests import SamplingRequest, SteeringRequest, mask_of
from revelio_jax.pipelines import denoiser, hook_points, loading, recorder, source, tokens
from revelio_jax.pipelines.families import FAMILIES, family_of
from revelio_jax.pipelines.families.base import LONGEST_PROMPT
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import sample
from revelio_jax.pipelines.source import PipelineSource
from revelio_jax.steering import Attachment, Steerer
from revelio_jax.steering.compatibility import same_model
from revelio_jax.steering.concept import converted, hidden_states, is_masked, tokenize, tokenizer_of
from revelio_jax.steering.learned_concepts import LearnedConcept, saved_concepts
from revelio_jax.steering.text_latents import TextLatent

EXPLORABLE = tuple(family.name for family in FAMILIES if family.takes_prompts and not family.is_standalone)
IMAGE_CACHE_BYTES = 512 * 2**20
ACTIVE_CACHE_SIZE = 4  # prompts or images; about 100 MB each for Stable Diffusion

OnStep = Callable[[int, int], None]
"""A callback for finished steps and the number of steps; an exception that it raises ends the sampling."""
Key = typing.Hashable


class BoundedCache:
    """A cache that drops its oldest items if the sum of sizes exceeds ``limit``. It always keeps the newest item."""

    def __init__(self, limit: int, size: Callable[[typing.Any], int]):
        self._limit, self._size = limit, size
        self._items: collections.OrderedDict[Key, typing.Any] = collections.OrderedDict()

    def get(self, key: Key) -> typing.Any:
        """Return an item, or None if it is not in the cache."""
        return self._items.get(key)

    def put(self, key: Key, item: typing.Any) -> None:
        """Add an item, and drop the oldest ones if the cache is full."""
        self._items[key] = item
        while len(self._items) > 1 and sum(map(self._size, self._items.values())) > self._limit:
            self._items.popitem(last=False)


class Backend:
    """A pipeline, its SAE, and caches of images and active latents. Several threads may call its methods."""

    def __init__(
        self,
        config: Config,
        source: PipelineSource,
        pipe: typing.Any,
        sae: str,
        steerer: Steerer,
        learned: dict[str, LearnedConcept],
    ):
        self.config, self.source, self.sae = config, source, sae
        self.pipe, self.steerer, self.learned = pipe, steerer, learned
        self.family, self.site = family_of(pipe), steerer.site
        self.points = hook_points.resolve_joined(pipe, self.site)
        self.in_denoiser = hook_points.is_denoiser_point(self.site)
        self.sees_text = not self.in_denoiser or self.site.endswith(".text")
        self._lock = threading.Lock()  # one image at a time
        self._images = BoundedCache(IMAGE_CACHE_BYTES, lambda image: image.nbytes)
        self._active = BoundedCache(ACTIVE_CACHE_SIZE, lambda _: 1)

    @property
    def n_latents(self) -> int:
        """Return the dictionary size of the SAE."""
        return self.steerer.sae.n_latents

    @property
    def takes_pooled(self) -> bool:
        """Return whether the pipeline has a pooled vector that steering can either change or keep."""
        pooled = self.family.pooled
        if pooled is None or self.in_denoiser:
            return False
        is_own_encoder = any(point.component == pooled.component for point in self.points)
        return not (pooled.is_only_output and is_own_encoder)  # FLUX's CLIP gives nothing else

    @property
    def positions(self) -> int:
        """Return the number of tokens of a prompt at the hook point, padding included."""
        return self._token_limit(self._position_encoder)

    # Requests

    def check_prompt(self, prompt: str, field: str = "prompt") -> None:
        """Raise InputError if a prompt has more tokens than the model reads; it would ignore the rest."""
        for component in self._limiting_encoders():
            limit = self._token_limit(component)
            tokenizer = tokenizer_of(self.pipe, component)
            (whole,) = converted(self.pipe, [prompt], tokenizer)
            count = len(tokenizer(whole, truncation=False).input_ids)
            if count > limit:
                raise InputError(f"the {field} has {count} tokens; this model reads at most {limit}; shorten it")

    def find_active(self, request: SamplingRequest, on_step: OnStep | None = None) -> ActiveLatents:
        """Return the latents that fire on the prompt, or in the image if the hook point is in the denoiser.

        Raise InputError if the prompt is too long.
        """
        self.check_prompt(request.prompt)
        key = request if self.in_denoiser else request.prompt
        if (active := self._active.get(key)) is None:
            with self._lock:
                new = self._sample_plain(request, on_step)[1] if self.in_denoiser else self._encode(request.prompt)
                active = self._active.get(key) or new
                self._active.put(key, active)
        return typing.cast(ActiveLatents, active)

    def plain_image(self, request: SamplingRequest, on_step: OnStep | None = None) -> np.ndarray:
        """Return the image without steering, uint8 [height, width, 3]."""
        self.check_prompt(request.prompt)
        if (image := self._images.get(request)) is None:
            with self._lock:
                image = self._sample_plain(request, on_step)[0]
        return image

    def steered_image(
        self, request: SamplingRequest, steering: SteeringRequest, on_step: OnStep | None = None
    ) -> np.ndarray:
        """Return the image with steering, from the same seed, uint8 [height, width, 3]."""
        self.check_prompt(request.prompt)
        for concept, _ in steering.concepts:
            if isinstance(concept, str):
                self.check_prompt(concept, "concept")
        key = request, steering
        if (image := self._images.get(key)) is None:
            with self._lock, self.attach(steering):
                image = self._sample(request, on_step)
            self._images.put(key, image)
        return image

    def attach(self, steering: SteeringRequest) -> Attachment:
        """Attach the steering of a request to the pipeline. Raise InputError if a token number is out of range."""
        positions: str | torch.Tensor = "all"
        if isinstance(steering.positions, str):
            positions = steering.positions
        elif steering.positions[-1] >= self.positions:
            raise InputError(f"tokens has {steering.positions[-1]}; a prompt has tokens 0-{self.positions - 1}")
        else:
            positions = torch.zeros(self.positions, dtype=torch.bool)
            positions[list(steering.positions)] = True
        return self.steerer.attach(
            self.pipe,
            dict(steering.concepts),
            rule=steering.rule,
            positions=positions,
            steps=steering.steps,
            ramp=steering.ramp,
            mask=None if steering.mask is None else torch.from_numpy(mask_of(steering.mask)),
            pooled=steering.pooled,
            negative_branch=steering.negative_branch,
            learned=self.learned,
        )

    def latents_for(self, text: str, top: int) -> list[TextLatent]:
        """Return the latents that fire most on a text, see :meth:`Steerer.latents_for`."""
        self.check_prompt(text, "text")
        with self._lock:
            return self.steerer.latents_for(self.pipe, text, top)

    def call_arguments(self, request: SamplingRequest) -> dict[str, typing.Any]:
        """Return the guidance arguments of the pipeline's call for one image."""
        call = self.family.call_arguments(self.pipe, [request.prompt], request.guidance)
        del call["prompt"]
        return {name: value[0] if isinstance(value, list) else value for name, value in call.items()}

    # Helpers. Callers of helpers that run the pipeline must hold the lock.

    @property
    def _position_encoder(self) -> str:
        """Return the text encoder whose tokens are the positions of the hook point."""
        if not self.in_denoiser:
            return self.points[0].component
        return self.family.text_encoders[self.family.position_text_encoder or ""]

    def _limiting_encoders(self) -> list[str]:
        """Return the text encoders that must read the whole prompt.

        An encoder for only the pooled vector truncates long prompts; it is included only if it has the hook point.
        """
        pooled, points = self.family.pooled, {point.component for point in self.points}
        exempt = {pooled.component} - points if pooled and pooled.is_only_output else set()
        return [encoder for encoder in self.family.text_encoders.values() if encoder not in exempt]

    def _token_limit(self, component: str) -> int:
        return min(LONGEST_PROMPT, tokenizer_of(self.pipe, component).model_max_length)

    def _sample(self, request: SamplingRequest, on_step: OnStep | None) -> np.ndarray:
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if on_step:
                on_step(done, request.steps)

        sampled = sample(
            self.pipe,
            [request.prompt],
            [request.seed],
            steps=request.steps,
            guidance=request.guidance,
            height=request.height,
            width=request.width,
            batch_size=1,
            on_step=step,
        )
        if sampled.flagged[0]:
            raise InputError("the safety checker of the pipeline flagged this image")
        return sampled.images[0]

    def _sample_plain(
        self, request: SamplingRequest, on_step: OnStep | None
    ) -> tuple[np.ndarray, ActiveLatents | None]:
        """Return the image without steering, and the latents that fire in it if the hook point is in the denoiser."""
        image, active = self._images.get(request), self._active.get(request)
        if image is not None and (active or not self.in_denoiser):
            return image, active
        if self.in_denoiser:
            image, active = self._record(request, on_step)
            self._active.put(request, active)
        else:
            image = self._sample(request, on_step)
        self._images.put(request, image)
        return image, active

    def _record(self, request: SamplingRequest, on_step: OnStep | None) -> tuple[np.ndarray, ActiveLatents]:
        """Sample an image and encode the denoiser's activations of every step."""
        extract = dataclasses.replace(
            self.config.extract,
            steps=request.steps,
            height=request.height,
            width=request.width,
            value=self.steerer.sae.metadata.get("value", "output"),
            pool="none",
            dtype="float32",
        )
        model = self.family.denoiser_of(self.pipe)
        latent = denoiser.latent_shape(self.source, model, extract)
        schedule = denoiser.schedule(self.source, dataclasses.replace(self.config, extract=extract), latent)
        with recorder.record(self.pipe, list(self.points), schedule, 1, extract, stop=False) as recording:
            image = self._sample(request, on_step)
        activations = [
            torch.cat([by_site[point.name][0] for point in self.points], dim=-1) for by_site in recording.values()
        ]
        layout: dict[str, typing.Any] = {"grid": grid_of(len(activations[0]), *latent[1:])}
        if self.sees_text:
            layout = self._tokens(self._position_encoder, request.prompt)
        sae = self.steerer.sae_for(self.pipe)
        return image, find_active(sae, activations, timesteps=tuple(recording), **layout)

    def _encode(self, prompt: str) -> ActiveLatents:
        """Encode the text encoder's activations of a prompt and of the empty prompt."""
        prompt_TD, empty_TD = hidden_states(self.pipe, self.site, [prompt, ""])
        sae = self.steerer.sae_for(self.pipe)
        empty_F = sae.codes(empty_TD).amax(0).cpu().numpy()
        return find_active(sae, [prompt_TD], empty=empty_F, **self._tokens(self.points[0].component, prompt))

    def _tokens(self, component: str, prompt: str) -> dict[str, typing.Any]:
        """Return the tokens of a prompt and their kinds, as arguments of ``find_active``."""
        tokenizer, batch = tokenizer_of(self.pipe, component), tokenize(self.pipe, component, [prompt])
        mask = batch.attention_mask.numpy() if is_masked(getattr(self.pipe, component)) else None
        (kinds,) = tokens.kinds(batch.input_ids.numpy(), tokenizer, mask)
        return {"tokens": tuple(tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())), "kinds": kinds}


def load(config: Config, sae: str | None) -> Backend:
    """Load the pipeline and the SAE of a config; ``sae`` is a folder or hub id, None for the run's export.

    The SAE is read and checked before the large pipeline is loaded. Raise InputError if the two do not fit.
    """
    if config.model.family not in EXPLORABLE:
        raise InputError(
            f"config.model.family is {config.model.family!r}; the explorer supports {', '.join(EXPLORABLE)}"
        )
    if not (sae or config.run):
        raise InputError("config.run is not set; it must be the folder of a run with an export, or pass --sae")
    sae = sae or str(pathlib.Path(config.run or "", "export"))
    steerer = Steerer.from_pretrained(sae)
    trained_on = steerer.sae.metadata.get("model_id")
    if trained_on and not same_model(trained_on, config.model.id or ""):
        raise InputError(f"config.model.id is {config.model.id!r}; the SAE was trained on {trained_on!r}")
    loading.quiet()
    origin = source.find(config.model.id, config.model.revision, config.model.family)
    skeleton = denoiser.skeleton(origin)
    denoiser.latent_shape(origin, origin.layout.denoiser_of(skeleton), config.steer, "steer")
    width = sum(point.d for point in hook_points.resolve_joined(skeleton, steerer.site))
    if width != steerer.sae.d:
        raise InputError(
            f"the SAE is for another model: its width is {steerer.sae.d}, but {steerer.site} of "
            f"{config.model.id!r} has width {width}"
        )
    learned = saved_concepts(config.run) if config.run else {}
    return Backend(config, origin, load_pipeline(config.model), sae, steerer, learned)
