"""The figures of config.benchmark.quality: the networks that they need, and their values on the images of a task.

All of them are about prompts with the role other, so they measure quality and retention, never removal.
"""

import contextlib
import dataclasses
import pathlib
import typing
from collections.abc import Callable, Generator, Mapping, Sequence

import numpy as np
import torch

from revelio_jax import shipped
from revelio_jax.benchmark import miniature_judge, words
from revelio_jax.benchmark.clip_judge import ImageEncoder, model_folder
from revelio_jax.benchmark.features import ClipFeatures, EmbedderFeatures, FeatureNetwork, Reference, SavedFeatures
from revelio_jax.benchmark.image_values import ImageValues
from revelio_jax.benchmark.images import ImageFolder, Shot, key_of
from revelio_jax.benchmark.inception import InceptionV3
from revelio_jax.benchmark.judgment import Record
from revelio_jax.benchmark.lpips import SMALLEST, Lpips
from revelio_jax.benchmark.measurement import interval
from revelio_jax.benchmark.quality import clip_scores, cosines, frechet_distance
from revelio_jax.benchmark.tasks import OTHER
from revelio_jax.config import did_you_mean
from revelio_jax.config.fields import field
from revelio_jax.config.schema import check_fields
from revelio_jax.errors import InputError
from revelio_jax.pipelines import devices
from revelio_jax.sae_folder.untrusted import read_json

FIELD = "config.benchmark.quality"
DEVICE = "auto, cuda, cuda:1, mps or cpu"
REFERENCE = "folder of reference images; None: the plain pipeline's images"


class QualityFigure(typing.TypedDict):
    """A figure and the number of images that it was computed from.

    ``low`` and ``high`` are the 95 % bootstrap interval over prompts; a Fréchet distance has none.
    """

    mean: float
    low: float | None
    high: float | None
    images: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """The images of a variant and of the plain pipeline for prompts with the role other, ``seeds`` for each.

    ``shots`` are ordered by prompt and then by seed. ``reported`` are those of every second prompt.
    """

    images: ImageFolder
    plain: ImageFolder
    shots: Sequence[Shot]
    reported: Sequence[Shot]
    seeds: int


class Measure(typing.Protocol):
    """An entry of config.benchmark.quality with the names of its figures. ``record`` is that of its loaded network."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def record(self) -> Record: ...

    def check(self, shots: Sequence[Shot]) -> None:
        """Raise InputError if images of ``shots``, all of the role other, are too few or too small."""
        ...

    def load(self) -> None:
        """Load the network."""
        ...

    def measure(self, sample: Sample, folder: pathlib.Path) -> dict[str, QualityFigure]:
        """Return the figures by their names. ``folder`` is that of saved features."""
        ...


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """CLIP score and the cosine to the plain image."""

    model: str | None = field(None, "folder of a CLIP model of transformers, with image processor and tokenizer")
    device: str = field("auto", DEVICE)


class ClipMeasure:
    """The CLIP score of an image and its prompt, and the cosine of its features to those of the plain image."""

    names = ("CLIP score", "CLIP cosine to plain")

    def __init__(self, settings: ClipSettings):
        self._field = f"{FIELD}: clip"
        self._folder = model_folder(settings.model, self._field)
        self._device = str(_device(self._field, settings.device))

    def check(self, shots: Sequence[Shot]) -> None:
        """Accept any number of images."""

    def load(self) -> None:
        """Load the model."""
        self._encoder = ImageEncoder(self._folder, self._device, self._field)
        self._network = ClipFeatures(self._encoder)
        self.record: Record = self._network.record

    def measure(self, sample: Sample, folder: pathlib.Path) -> dict[str, QualityFigure]:
        """Return both figures on the reported prompts. Prompts that are too long for the model are cut off."""
        saved = SavedFeatures(folder, self._network)
        images, plain = (saved.of(each, sample.reported) for each in (sample.images, sample.plain))
        prompts = list(dict.fromkeys(shot.prompt.prompt for shot in sample.reported))
        rows = self._encoder.embed_texts(prompts, truncate=True).cpu().numpy()
        text_of = dict(zip(prompts, rows, strict=True))
        texts: list[np.ndarray | None] = [text_of[shot.prompt.prompt] for shot in sample.reported]
        pairs = ((clip_scores, texts), (cosines, plain))
        figures = (_figure(_paired(function, images, others), sample.seeds) for function, others in pairs)
        return {name: figure for name, figure in zip(self.names, figures, strict=True) if figure}


@dataclasses.dataclass(frozen=True)
class FidSettings:
    """FID with the features of InceptionV3."""

    features: str | None = field(None, "safetensors file with the weights of pytorch-fid's InceptionV3")
    reference: str | None = field(None, REFERENCE)
    device: str = field("auto", DEVICE)


@dataclasses.dataclass(frozen=True)
class FrechetSettings:
    """The Fréchet distance of another model's features."""

    model: str | None = field(None, "folder of an image model of transformers, or of a miniature with its judge")
    reference: str | None = field(None, REFERENCE)
    device: str = field("auto", DEVICE)


class FrechetMeasure:
    """The Fréchet distance of the features of all images with the role other to those of reference images."""

    def __init__(self, settings: FidSettings | FrechetSettings):
        self._network: FeatureNetwork | None = None
        name = "fid" if isinstance(settings, FidSettings) else "frechet"
        self._field = f"{FIELD}: {name}"
        device = _device(self._field, settings.device)
        where = settings.reference
        self._reference = Reference(where, f"{self._field}.reference") if where else None
        self._reference_features: np.ndarray | None = None
        if isinstance(settings, FidSettings):
            path = _file(f"{self._field}.features", settings.features)
            with _naming(self._field):
                self._network = InceptionV3(path, device)
            title = "FID"
        else:
            self._folder, self._kind = _image_model(f"{self._field}.model", settings.model)
            self._device, title = str(device), f"Fréchet distance ({self._kind})"
        self.names = (title if self._reference else f"{title} to plain",)

    @property
    def record(self) -> Record:
        """Return the record of the network, with the reference."""
        assert self._network is not None
        reference = self._reference
        origin = None if reference is None else {"images": reference.count, "fingerprint": reference.fingerprint}
        return {**self._network.record, "reference": origin or "plain"}

    def check(self, shots: Sequence[Shot]) -> None:
        """Raise InputError if the images or the references are not more than the features, as far as it is known."""
        if self._network is None:
            return
        counts = {f"the prompts with the role {OTHER} have": len({shot.file_name for shot in shots})}
        if self._reference:
            counts["the reference has"] = self._reference.count
        for which, count in counts.items():
            if count <= (width := self._network.width):
                raise InputError(
                    f"{self._field} needs more images than its {width:,} features; {which} {count:,} images"
                )

    def load(self) -> None:
        """Load the model, unless it is InceptionV3, which is loaded with its settings."""
        self._network = self._network or EmbedderFeatures(
            self._folder, self._kind, self._device, f"{self._field}.model"
        )

    def measure(self, sample: Sample, folder: pathlib.Path) -> dict[str, QualityFigure]:
        """Return the distance of all images; none if the safety checker leaves too few of them."""
        assert self._network is not None
        saved = SavedFeatures(folder, self._network)
        if self._reference and self._reference_features is None:
            self._reference_features = saved.of_reference(self._reference)
        shots = list({shot.file_name: shot for shot in sample.shots}.values())
        rows = [row for row in saved.of(sample.images, shots) if row is not None]
        reference = self._reference_features
        others = [row for row in saved.of(sample.plain, shots) if row is not None] if reference is None else reference
        if min(len(rows), len(others)) <= self._network.width:
            return {}
        distance = frechet_distance(np.stack(rows), np.stack(list(others)))
        return {self.names[0]: {"mean": distance, "low": None, "high": None, "images": len(rows)}}


@dataclasses.dataclass(frozen=True)
class LpipsSettings:
    """LPIPS with AlexNet."""

    backbone: str | None = field(None, "safetensors file with the convolutions of torchvision's AlexNet")
    weights: str | None = field(None, "safetensors file with the weights of LPIPS' channels")
    device: str = field("auto", DEVICE)


class LpipsMeasure:
    """The LPIPS distance to the plain image at the same seed."""

    names = ("LPIPS to plain",)

    def __init__(self, settings: LpipsSettings):
        self._field = f"{FIELD}: lpips"
        device = _device(self._field, settings.device)
        backbone = _file(f"{self._field}.backbone", settings.backbone)
        weights = _file(f"{self._field}.weights", settings.weights)
        with _naming(self._field):
            self._network = Lpips(backbone, weights, device)
        self.record: Record = self._network.record

    def check(self, shots: Sequence[Shot]) -> None:
        """Raise InputError if an image is too small for AlexNet."""
        for shot in shots:
            if min(shot.prompt.height, shot.prompt.width) < SMALLEST:
                raise InputError(
                    f"{self._field} needs images of at least {SMALLEST} x {SMALLEST} pixels; a prompt of "
                    f"{shot.prompt.set} has {shot.prompt.height} x {shot.prompt.width}"
                )

    def load(self) -> None:
        """Do nothing, because the network is loaded with its settings."""

    def measure(self, sample: Sample, folder: pathlib.Path) -> dict[str, QualityFigure]:
        """Return the distance on the reported prompts."""
        plain = sample.plain

        def compute(shots: list[Shot], pixels: np.ndarray) -> list[float | None]:
            read = [plain.read(shot) for shot in shots]
            distances = self._network.distances(pixels, np.stack([each for each, _ in read]))
            return [None if flag else float(value) for value, (_, flag) in zip(distances, read, strict=True)]

        path = folder / key_of(self.record) / f"{sample.images.path.name}.jsonl"
        found = ImageValues(path, "distances").of(
            sample.images,
            sample.reported,
            compute,
            key=lambda shot: key_of({"file": shot.file_name, "plain": plain.path.name}),
        )
        values = np.array([np.nan if value is None else value for value in found])
        figure = _figure(values, sample.seeds)
        return {self.names[0]: figure} if figure else {}


KINDS: dict[str, tuple[type[typing.Any], typing.Callable[[typing.Any], Measure]]] = {
    "clip": (ClipSettings, ClipMeasure),
    "fid": (FidSettings, FrechetMeasure),
    "frechet": (FrechetSettings, FrechetMeasure),
    "lpips": (LpipsSettings, LpipsMeasure),
}


def parse_measures(texts: Sequence[str]) -> list[Measure]:
    """Return the measures of config.benchmark.quality.

    Raise InputError if one is unknown, a setting or file is missing or wrong, or two give figures of the same name.
    """
    measures: list[Measure] = []
    for text in dict.fromkeys(texts):
        name, values = words.parse(FIELD, text)
        if name not in KINDS:
            raise InputError(f"{FIELD} has {name!r}; {did_you_mean(name, KINDS, 'figures')}")
        kind, make = KINDS[name]
        measure = make(check_fields(f"{FIELD}: {name}", kind, values))
        for each in measures:
            if set(each.names) & set(measure.names):
                raise InputError(f"{FIELD} has {text!r}; another entry gives {measure.names[0]!r} too, use one of them")
        measures.append(measure)
    return measures


def check_measures(measures: Sequence[Measure], shots: Mapping[str, Sequence[Shot]]) -> None:
    """Raise InputError if a measure lacks images. ``shots`` are those of the role other of each task, by its name."""
    for measure in measures:
        for name, own in shots.items():
            if not own:
                raise InputError(
                    f"{FIELD} needs prompts with the role {OTHER}; {name} has none: add a prompt set with role={OTHER}"
                )
            measure.check(own)


def measure_quality(
    measures: Sequence[Measure],
    images: ImageFolder,
    plain: ImageFolder,
    others: Sequence[Shot],
    seeds: int,
    folder: pathlib.Path,
) -> dict[str, QualityFigure]:
    """Return all figures of a variant on ``others``, the shots of the role other, by prompt and then by seed.

    ``images`` are its images, ``plain`` those of the plain pipeline, and ``folder`` is that of saved features.
    """
    if not others:
        return {}
    reported = [shot for number, shot in enumerate(others) if number // seeds % 2]
    sample = Sample(images, plain, others, reported, seeds)
    return {name: figure for each in measures for name, figure in each.measure(sample, folder).items()}


def _figure(values: np.ndarray, seeds: int) -> QualityFigure | None:
    """Return the mean of ``values``, by prompt and then by seed, with its interval; None if all of them are NaN."""
    by_prompt = values.reshape(-1, seeds)
    measured = by_prompt[~np.isnan(by_prompt).all(1)]
    if not len(measured):
        return None
    return {**interval(np.nanmean(measured, 1)), "images": int((~np.isnan(measured)).sum())}


def _paired(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    first: Sequence[np.ndarray | None],
    second: Sequence[np.ndarray | None],
) -> np.ndarray:
    """Return the values of ``function`` for rows of features; NaN where one of the two is missing."""
    values = np.full(len(first), np.nan)
    pairs = [(i, a, b) for i, (a, b) in enumerate(zip(first, second, strict=True)) if a is not None and b is not None]
    if pairs:
        numbers, rows, others = zip(*pairs, strict=True)
        values[list(numbers)] = function(np.stack(rows), np.stack(others))
    return values


def _device(field: str, name: str) -> torch.device:
    try:
        return devices.device(name)
    except InputError as error:
        raise InputError(str(error).replace("config.model.device", f"{field}.device")) from error


def _file(field: str, name: str | None) -> pathlib.Path:
    """Return the path of a safetensors file. Raise InputError, which names ``field``, if there is none."""
    path = pathlib.Path(name or "")
    if not name or path.suffix != ".safetensors" or not path.is_file():
        raise InputError(f"{field} is {name!r}; it must be a .safetensors file")
    return path


@contextlib.contextmanager
def _naming(field: str) -> Generator[None]:
    """Put the name of a setting before an InputError about a file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def _image_model(field: str, name: str | None) -> tuple[pathlib.Path, str]:
    """Return the folder of a model of images and its type. Raise InputError, which names ``field``, if it has none."""
    folder = pathlib.Path(shipped.locate(name)) if name else None
    if folder and (folder / miniature_judge.WEIGHTS).is_file():
        return folder, "miniature"
    if folder is None or not (folder / "config.json").is_file():
        raise InputError(
            f"{field} is {name!r}; it must be the folder of an image model of transformers, with config.json, or of a "
            f"miniature's judge, with {miniature_judge.WEIGHTS}"
        )
    return folder, str(read_json(folder / "config.json").get("model_type"))
