"""The pipeline and its autoencoder behind the page: what fires, and pictures, plain and steered.

One picture is made at a time, whoever asks; what was made is kept, as long as there is room.
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
from revelio_jax.explore.activations import ActiveLatents, fired, grid_of
from revelio_jax.explore.requests import SamplingRequest, SteeringRequest, mask_of
from revelio_jax.pipelines import denoiser, hook_points, loading, recorder, tokens
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.loading import PipelineSource
from revelio_jax.pipelines.sampling import arguments, sample
from revelio_jax.pipelines.whole import load_pipeline
from revelio_jax.steering import Attachment, Steerer
from revelio_jax.steering.concept import hidden_states, is_masked, tokenizer_of
from revelio_jax.steering.learned_concepts import LearnedConcept, saved_concepts

FAMILIES = ("sd", "sdxl", "flux")
KEPT_BYTES = 512 * 2**20  # of pictures
KEPT_FIRED = 4  # of prompts and pictures: at the size of Stable Diffusion 100 MB each

OnStep = Callable[[int, int], None]
"""Told of the steps that are done, and of how many there are; what it raises ends the picture."""
Key = typing.Hashable


class BoundedCache:
    """What was made last, by its key, as many as ``room`` is for; ``size`` says how much one takes."""

    def __init__(self, room: int, size: Callable[[typing.Any], int]):
        self._room, self._size = room, size
        self._kept: collections.OrderedDict[Key, typing.Any] = collections.OrderedDict()

    def get(self, key: Key) -> typing.Any:
        return self._kept.get(key)

    def put(self, key: Key, made: typing.Any) -> None:
        self._kept[key] = made
        while len(self._kept) > 1 and sum(map(self._size, self._kept.values())) > self._room:
            self._kept.popitem(last=False)


class Backend:
    """See the module. Its methods may be called from several threads; they raise InputError."""

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
        self.family, self.site = hook_points.family(pipe), steerer.site
        self.hooked = hook_points.resolve_joined(pipe, self.site)
        self.in_denoiser = hook_points.is_denoiser_site(self.site)
        self.sees_text = not self.in_denoiser or self.site.endswith(".text")
        self._turn = threading.Lock()
        self._pictures = BoundedCache(KEPT_BYTES, lambda picture: picture.nbytes)
        self._fired = BoundedCache(KEPT_FIRED, lambda _: 1)

    # What the page offers

    @property
    def n_latents(self) -> int:
        return self.steerer.sae.n_latents

    @property
    def takes_pooled(self) -> bool:
        """Whether a pooled vector stands beside the site, which may be steered or left."""
        vector = family_of(self.pipe).pooled
        if vector is None or self.in_denoiser:
            return False
        return not (vector.is_all and any(point.component == vector.component for point in self.hooked))

    @property
    def positions(self) -> int:
        """Tokens of a prompt at the site, padding among them."""
        return self._limit("text_encoder_2" if self.in_denoiser else self.hooked[0].component)

    # What is asked of it

    def check_prompt(self, prompt: str, what: str = "prompt") -> None:
        """Raises InputError where a prompt has more tokens than the model takes: they would be cut off."""
        for component in self._readers():
            limit = self._limit(component)
            count = len(tokenizer_of(self.pipe, component)(prompt, truncation=False).input_ids)
            if count > limit:
                raise InputError(
                    f"the {what} has {count} tokens, marks of start and end among them; this model takes "
                    f"{limit} at most: shorten it"
                )

    def fires(self, sampling: SamplingRequest, on_step: OnStep | None = None) -> ActiveLatents:
        """Which latents fire on the prompt; at a denoiser while the picture is made, which it then is."""
        self.check_prompt(sampling.prompt)
        key = sampling if self.in_denoiser else sampling.prompt
        if (found := self._fired.get(key)) is None:
            with self._turn:
                made = self._plain(sampling, on_step)[1] if self.in_denoiser else self._read(sampling.prompt)
                found = self._fired.get(key) or made
                self._fired.put(key, found)
        return found

    def plain(self, sampling: SamplingRequest, on_step: OnStep | None = None) -> np.ndarray:
        """The picture without steering, uint8 [height, width, 3]."""
        self.check_prompt(sampling.prompt)
        if (picture := self._pictures.get(sampling)) is None:
            with self._turn:
                picture = self._plain(sampling, on_step)[0]
        return picture

    def steered(
        self, sampling: SamplingRequest, steering: SteeringRequest, on_step: OnStep | None = None
    ) -> np.ndarray:
        """The picture with steering, from the same seed."""
        self.check_prompt(sampling.prompt)
        for concept, _ in steering.concepts:
            if isinstance(concept, str):
                self.check_prompt(concept, "concept")
        key = sampling, steering
        if (picture := self._pictures.get(key)) is None:
            with self._turn, self.attach(steering):
                picture = self._sample(sampling, on_step)
            self._pictures.put(key, picture)
        return picture

    def attach(self, steering: SteeringRequest) -> Attachment:
        """What is asked for as :meth:`Steerer.attach` takes it."""
        positions: str | torch.Tensor = "all"
        if isinstance(steering.positions, str):
            positions = steering.positions
        elif steering.positions[-1] >= self.positions:
            raise InputError(f"positions has {steering.positions[-1]}; a prompt has the tokens 0-{self.positions - 1}")
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

    def latents_for(self, text: str, top: int) -> list[dict[str, typing.Any]]:
        """See :meth:`Steerer.latents_for`."""
        self.check_prompt(text, "text")
        with self._turn:
            return self.steerer.latents_for(self.pipe, text, top)

    def call(self, sampling: SamplingRequest) -> dict[str, typing.Any]:
        """Arguments of the pipeline's call for one picture that its family needs."""
        given = arguments(self.pipe, sampling.guidance, 1)
        return {name: value[0] if isinstance(value, list) else value for name, value in given.items()}

    # Inside; in these a thread has its turn

    def _readers(self) -> list[str]:
        """The text encoders that a prompt has to fit in. FLUX's CLIP cuts every long one."""
        readers = hook_points.TEXT_ENCODERS[self.family].values()
        needed = {site.component for site in self.hooked} | {"text_encoder_2"}
        return [reader for reader in readers if self.family != "flux" or reader in needed]

    def _limit(self, component: str) -> int:
        return min(denoiser.T5_TOKENS, tokenizer_of(self.pipe, component).model_max_length)

    def _sample(self, sampling: SamplingRequest, on_step: OnStep | None) -> np.ndarray:
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if on_step:
                on_step(done, sampling.steps)

        (picture,) = sample(
            self.pipe,
            [sampling.prompt],
            [sampling.seed],
            steps=sampling.steps,
            guidance=sampling.guidance,
            height=sampling.height,
            width=sampling.width,
            batch_size=1,
            on_step=step,
        )
        return picture

    def _plain(self, sampling: SamplingRequest, on_step: OnStep | None) -> tuple[np.ndarray, ActiveLatents | None]:
        """The picture, and what fired in its making where that is in the denoiser."""
        picture, found = self._pictures.get(sampling), self._fired.get(sampling)
        if picture is not None and (found or not self.in_denoiser):
            return picture, found
        if self.in_denoiser:
            picture, found = self._recorded(sampling, on_step)
            self._fired.put(sampling, found)
        else:
            picture = self._sample(sampling, on_step)
        self._pictures.put(sampling, picture)
        return picture, found

    def _recorded(self, sampling: SamplingRequest, on_step: OnStep | None) -> tuple[np.ndarray, ActiveLatents]:
        extract = dataclasses.replace(
            self.config.extract,
            steps=sampling.steps,
            height=sampling.height,
            width=sampling.width,
            value=self.steerer.sae.metadata.get("value", "output"),
            pool="none",
            dtype="float32",
        )
        model = getattr(self.pipe, hook_points.DENOISERS[self.family])
        latent = denoiser.latent_shape(self.source, model, extract)
        schedule = denoiser.schedule(self.source, dataclasses.replace(self.config, extract=extract), latent)
        with recorder.recorded(self.pipe, list(self.hooked), schedule, 1, extract, stop=False) as found:
            picture = self._sample(sampling, on_step)
        activations = [
            torch.cat([of_sites[site.name][0] for site in self.hooked], dim=-1) for of_sites in found.values()
        ]
        shown: dict[str, typing.Any] = {"grid": grid_of(len(activations[0]), *latent[1:])}
        if self.sees_text:
            shown = self._tokens("text_encoder_2", sampling.prompt)
        return picture, fired(self.steerer.placed(self.pipe), activations, timesteps=tuple(found), **shown)

    def _read(self, prompt: str) -> ActiveLatents:
        of_prompt, of_empty = hidden_states(self.pipe, self.site, [prompt, ""])
        sae = self.steerer.placed(self.pipe)
        empty = sae.codes(of_empty).amax(0).cpu().numpy()
        return fired(sae, [of_prompt], empty=empty, **self._tokens(self.hooked[0].component, prompt))

    def _tokens(self, component: str, prompt: str) -> dict[str, typing.Any]:
        """The tokens of a prompt as the tokenizer spells them, and what they are."""
        tokenizer = tokenizer_of(self.pipe, component)
        got = tokenizer(
            [prompt],
            padding="max_length",
            max_length=self._limit(component),
            truncation=True,
            return_tensors="np",
        )
        mask = got.attention_mask if is_masked(getattr(self.pipe, component)) else None
        (kinds,) = tokens.kinds(got.input_ids, tokenizer, mask)
        return {"tokens": tuple(tokenizer.convert_ids_to_tokens(got.input_ids[0].tolist())), "kinds": kinds}


def load(config: Config, sae: str) -> Backend:
    """Load what the config names; the SAE first, since it is small. Raises InputError."""
    if config.model.family not in FAMILIES:
        raise InputError(f"config.model.family is {config.model.family!r}; the explorer samples {', '.join(FAMILIES)}")
    if not (sae or config.run):
        raise InputError("config.run is empty; it names the run whose export is explored, or --sae does")
    sae = sae or str(pathlib.Path(config.run, "export"))
    steerer = Steerer.from_pretrained(sae)
    facts = steerer.sae.metadata
    trained_on = facts.get("model_id")
    if trained_on and trained_on != config.model.id:
        raise InputError(f"config.model.id is {config.model.id!r}; the SAE was trained on {trained_on!r}")
    denoiser.quiet()
    source = loading.find(config.model.id, config.model.revision, config.model.family)
    skeleton = denoiser.skeleton(source)
    steer = config.steer
    size = dataclasses.replace(config.extract, height=steer.height, width=steer.width)
    try:
        denoiser.latent_shape(source, getattr(skeleton, hook_points.DENOISERS[source.family]), size)
    except InputError as error:
        raise InputError(str(error).replace("config.extract", "config.steer")) from error
    width = sum(site.d for site in hook_points.resolve_joined(skeleton, steerer.site))
    if width != steerer.sae.d:
        raise InputError(
            f"the SAE is for another model: its width is {steerer.sae.d}, {steerer.site} of "
            f"{config.model.id!r} has {width}"
        )
    learned = saved_concepts(config.run) if config.run else {}
    return Backend(config, source, load_pipeline(config.model), sae, steerer, learned)
