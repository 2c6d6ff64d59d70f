"""The samples on which a pipeline is measured, plain and with replaced activations."""

import dataclasses
import random
import typing

import numpy as np
import torch
import tqdm

from revelio_jax import files
from revelio_jax.benchmark.judges import load_judge
from revelio_jax.benchmark.judgment import Judge
from revelio_jax.benchmark.quality import pixel_rmse
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.faithfulness import figures, patches
from revelio_jax.faithfulness.figures import NoisedImages
from revelio_jax.faithfulness.patches import Clock, Patch, Replacement
from revelio_jax.faithfulness.sites import Site
from revelio_jax.inputs import prompt_settings
from revelio_jax.inputs.images import read_images
from revelio_jax.pipelines import noising
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.families.base import Arguments
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering.labels import LabeledPrompt, label_columns, read_labeled, spread

DEFAULT_TIMESTEPS = (100, 300, 500, 700, 900)
Values = dict[str, np.ndarray]
"""Values per sample, [N], by figure; the loss by timestep is [N, timesteps] under ``loss``."""
FLAGS = {
    "prompts": (32, "number of prompts, or of images of mode noised, to measure on"),
    "reference": (32, "number of other prompts or images whose activations give the means"),
    "seed": (0, "seed of the first image; the others follow"),
    "timesteps": (None, "timesteps of the denoising loss, separated by commas; None: those of config.extract, or five"),
    "picture": (True, "also measure images sampled with replaced activations"),
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts with their labels, and the seed and guidance scale of the image of each. ``size`` is height, width."""

    rows: list[LabeledPrompt]
    seeds: list[int]
    guidance: list[float]
    size: tuple[int, int]

    @property
    def texts(self) -> list[str]:
        """Return the texts of the prompts."""
        return [row["prompt"] for row in self.rows]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs of splice and scan, read and checked before a pipeline is loaded.

    ``measured`` and ``reference`` are empty lists without config.steer.prompts; images [N, 3, h, w] in -1 .. 1 are None
    unless activations are extracted from images. ``judge`` is None if no prompt has a label that it predicts.
    """

    config: Config
    flags: dict[str, typing.Any]
    labeled: list[LabeledPrompt]
    measured: list[LabeledPrompt]
    reference: list[LabeledPrompt]
    images: np.ndarray | None
    reference_images: np.ndarray | None
    judge: Judge | None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A pipeline, its plain figures, and the samples. Without prompts, ``prompts`` is None."""

    pipe: typing.Any
    inputs: Inputs
    clock: Clock
    prompts: Prompts | None
    plain_images: np.ndarray | None
    plain_embedding: Arguments | None
    noised: NoisedImages
    plain: Values

    @property
    def samples_pictures(self) -> bool:
        """Return whether images are sampled with replaced activations."""
        return self.inputs.flags["picture"] and self.prompts is not None


def read_inputs(config: Config, flags: dict[str, typing.Any]) -> Inputs:
    """Read prompts and images and load the judge. Raise InputError if a field or flag is not valid."""
    for name, low in (("prompts", 2), ("reference", 2), ("seed", 0)):
        if flags[name] < low:
            raise InputError(f"--{name} is {flags[name]}; it must be at least {low}")
    if not config.run:
        raise InputError("config.run is not set; it must be the folder of a run, for example runs/mini_sd")
    files.check_writable(config.run, "config.run")
    extract, steer = config.extract, config.steer
    has_images = extract.mode == "noised" and bool(extract.images)
    if not steer.prompts and not has_images:
        raise InputError("config.steer.prompts is not set; it must be a file of prompts")
    labeled = read_labeled(steer.prompts) if steer.prompts else []
    judge = load_judge(steer.judge, steer.judge_settings) if steer.judge and labeled and flags["picture"] else None
    judged = [column for column in (judge.columns if judge else ()) if column in label_columns(labeled)]
    measured, reference = _choose(labeled, judged, flags)
    images, reference_images = _read_images(config, flags) if has_images else (None, None)
    return Inputs(config, flags, labeled, measured, reference, images, reference_images, judge if judged else None)


def _choose(
    labeled: list[LabeledPrompt], judged: list[str], flags: dict[str, typing.Any]
) -> tuple[list[LabeledPrompt], list[LabeledPrompt]]:
    """Return prompts to measure on, with all labels that are judged if any has them, and other prompts."""
    if not labeled:
        return [], []
    rng = random.Random(flags["seed"])
    complete = [row for row in labeled if all(row[column] for column in judged)] or labeled
    column = judged[0] if judged else "prompt"
    chosen = spread(complete, column, flags["prompts"] + flags["reference"], rng)
    rng.shuffle(chosen)
    if len(chosen) < 4:
        raise InputError(f"config.steer.prompts has {len(chosen)} prompts to measure on; it must have at least 4")
    count = min(flags["prompts"], len(chosen) // 2)
    return chosen[:count], chosen[count : count + flags["reference"]]


def _read_images(config: Config, flags: dict[str, typing.Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return images to measure on, and other images: float32 [N, 3, h, w] in -1 .. 1."""
    extract = config.extract
    images = read_images(extract.images, extract.image_column, extract.label_column, extract.split)
    numbers = list(range(len(images.samples)))
    random.Random(flags["seed"]).shuffle(numbers)
    wanted = flags["prompts"] + flags["reference"]
    loaded: list[np.ndarray] = []
    for number in numbers:
        if len(loaded) < wanted and (image := images.load(number, extract.height, extract.width)) is not None:
            loaded.append(image)
    if len(loaded) < 4:
        raise InputError(f"config.extract.images has {len(loaded)} images that can be decoded; at least 4 are needed")
    count = min(flags["prompts"], len(loaded) // 2)
    return np.stack(loaded[:count]), np.stack(loaded[count:])


def settings_of(rows: list[LabeledPrompt], config: Config, first_seed: int) -> Prompts:
    """Return prompts with the seed and guidance of each image. Raise InputError if their sizes differ."""
    own = prompt_settings.read(rows, config.steer)
    seeds = [
        first_seed + i if each.seed is None else prompt_settings.added(each.seed, first_seed)
        for i, each in enumerate(own)
    ]
    return Prompts(rows, seeds, [each.guidance for each in own], prompt_settings.one_size(own))


def prepare(pipe: typing.Any, inputs: Inputs, clock: Clock, timesteps: tuple[int, ...]) -> Experiment:
    """Measure the plain pipeline. ``timesteps`` are those of the loss.

    The images of the loss are those of config.extract.images in mode noised, otherwise the plain pipeline's own.
    """
    config, seed = inputs.config, inputs.flags["seed"]
    prompts = settings_of(inputs.measured, config, seed) if inputs.measured else None
    plain_images, plain_embedding, plain = None, None, Values()
    if prompts is not None:
        plain_embedding = figures.encode(pipe, prompts.texts, config.steer.guidance, prompts.size)
        plain["embedding"] = np.zeros(len(prompts.rows))
    if prompts is not None and (inputs.flags["picture"] or inputs.images is None):
        plain_images = sample_prompts(pipe, prompts, config, "plain images")
        plain["pixels"] = np.zeros(len(prompts.rows))
        if inputs.judge:
            plain["accuracy"] = figures.judge_accuracy(inputs.judge, plain_images, prompts.rows)
    noised = _noised(pipe, inputs, prompts, plain_images, timesteps)
    plain["loss"] = figures.denoising_loss(pipe, noised, noised.conditioning(pipe))
    return Experiment(pipe, inputs, clock, prompts, plain_images, plain_embedding, noised, plain)


def _noised(
    pipe: typing.Any, inputs: Inputs, prompts: Prompts | None, plain: np.ndarray | None, timesteps: tuple[int, ...]
) -> NoisedImages:
    extract, steer, seed = inputs.config.extract, inputs.config.steer, inputs.flags["seed"]
    if inputs.images is not None:
        return noised_images(pipe, inputs, inputs.images, timesteps, seed)
    assert prompts is not None
    assert plain is not None
    latents = _latents(pipe, plain.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1, steer.batch_size)
    guidance = steer.guidance if extract.mode == "text" else extract.guidance
    return NoisedImages(latents, prompts.seeds, timesteps, prompts.texts, prompts.size, guidance, steer.batch_size)


def noised_images(
    pipe: typing.Any, inputs: Inputs, images: np.ndarray, timesteps: tuple[int, ...], first_seed: int
) -> NoisedImages:
    """Return images of config.extract.images, conditioned on config.extract.prompt."""
    extract = inputs.config.extract
    return NoisedImages(
        _latents(pipe, images, extract.batch_size),
        list(range(first_seed, first_seed + len(images))),
        timesteps,
        [extract.prompt] * len(images),
        (extract.height, extract.width),
        extract.guidance,
        extract.batch_size,
    )


def _latents(pipe: typing.Any, images: np.ndarray, batch_size: int) -> torch.Tensor:
    starts = range(0, len(images), batch_size)
    return torch.cat([noising.encode_images(pipe, images[start : start + batch_size]) for start in starts])


def sample_prompts(pipe: typing.Any, prompts: Prompts, config: Config, description: str) -> np.ndarray:
    """Sample an image of each prompt: uint8 [N, height, width, 3]."""
    steer, (height, width) = config.steer, prompts.size
    with tqdm.tqdm(total=len(prompts.rows), unit="image", desc=description, leave=False) as progress:
        return sample(
            pipe,
            prompts.texts,
            prompts.seeds,
            steps=steer.steps,
            guidance=prompts.guidance,
            height=height,
            width=width,
            batch_size=steer.batch_size,
            progress=progress,
        ).images


def measure(experiment: Experiment, site: Site, patch: Patch, description: str, *, with_picture: bool = True) -> Values:
    """Return the figures with the activations of ``site`` replaced by ``patch``.

    ``embedding`` is measured at text encoders only. The plain pipeline's images are the reference of ``pixels``.
    """
    pipe, prompts, noised = experiment.pipe, experiment.prompts, experiment.noised
    replacement = Replacement(patch, experiment.clock, site.timesteps, family_of(pipe).timestep_scale)
    options: dict[str, typing.Any] = {"positions": site.positions, "difference": site.difference}
    values = Values()
    if site.is_text:
        with patches.attach(pipe, site.points, replacement, **options):
            conditioning = noised.conditioning(pipe)
            if prompts is not None and experiment.plain_embedding is not None:
                guidance = experiment.inputs.config.steer.guidance
                changed = figures.encode(pipe, prompts.texts, guidance, prompts.size)
                values["embedding"] = figures.embedding_distance(changed, experiment.plain_embedding)
        values["loss"] = figures.denoising_loss(pipe, noised, conditioning)
    else:
        with patches.patched_passes(site.points[0], replacement, site.difference):
            values["loss"] = figures.denoising_loss(pipe, noised, noised.conditioning(pipe))
    if with_picture and experiment.samples_pictures:
        assert prompts is not None
        assert experiment.plain_images is not None
        with patches.attach(pipe, site.points, replacement, **options):
            images = sample_prompts(pipe, prompts, experiment.inputs.config, description)
        values["pixels"] = pixel_rmse(images, experiment.plain_images)
        if experiment.inputs.judge:
            values["accuracy"] = figures.judge_accuracy(experiment.inputs.judge, images, prompts.rows)
    return values


def per_sample(values: Values, figure: str) -> np.ndarray:
    """Return a figure as one value per sample [N]: the loss is the mean over timesteps."""
    array = values[figure]
    return array.mean(1) if array.ndim == 2 else array


def loss_timesteps(flag: str | None, trained: tuple[int, ...], allowed: int) -> tuple[int, ...]:
    """Return the timesteps of the loss: those of the flag, the trained ones, or five.

    ``allowed`` is the number of the model's timesteps. Raise InputError if one of them is invalid or not trained.
    """
    if flag is None:
        return trained or tuple(t for t in DEFAULT_TIMESTEPS if t < allowed)
    try:
        timesteps = tuple(int(text) for text in flag.split(","))
    except ValueError as error:
        raise InputError(f"--timesteps is {flag!r}; it must be whole numbers such as 100,500") from error
    for timestep in timesteps:
        if not 0 <= timestep < allowed:
            raise InputError(f"--timesteps contains {timestep}; this model has timesteps 0 to {allowed - 1}")
        if trained and timestep not in trained:
            raise InputError(
                f"--timesteps contains {timestep}; the SAE was trained on the timesteps {', '.join(map(str, trained))}"
            )
    return timesteps
