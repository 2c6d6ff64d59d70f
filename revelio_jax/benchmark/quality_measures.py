"""The figures of config.benchmark.quality: the networks that they need, and their values on the images of a task.

All of them are about prompts with the role other, so they measure quality and retention, never removal.
"""

import dataclasses
import pathlib
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from revelio_jax.benchmark import words
from revelio_jax.benchmark.clip_judge import ImageEncoder, model_folder
from revelio_jax.benchmark.features import ClipFeatures, EmbedderFeatures, FeatureNetwork, Reference, SavedFeatures
from revelio_jax.benchmark.image_values import ImageValues
from revelio_jax.benchmark.images import ImageFolder, Shot, key_of
from revelio_jax.benchmark.inception import InceptionV3
from revelio_jax.benchmark.judgment import Record
from revelio_jax.benchmark.lpips import SMALLEST, Lpips
from revelio_jax.benchmark.measurement import interval
from revelio_jax.benchmark.quality import clip_scores, cosines, frechet_distance
from revelio_jax.benchmark.quality_settings import (
    FIELD,
    ClipSettings,
    FidSettings,
    FrechetSettings,
    LpipsSettings,
    image_model,
    naming,
    open_device,
    weight_file,
)
from revelio_jax.benchmark.tasks import OTHER
from revelio_jax.config import did_you_mean
from revelio_jax.config.schema import check_fields
from revelio_jax.errors import InputError


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

    ``shots`` are ordered by prompt and then by seed.
    """

    images: ImageFolder
    plain: ImageFolder
    shots: Sequence[Shot]
    seeds: int


class Measure(typing.Protocol):
    """An entry of config.benchmark.quality with the names of its figures.

    ``set`` is the name of the prompt set that it uses, None for all prompts with the role other. ``record`` is that of
    its loaded network, with the set and other settings.
    """

    @property
    def set(self) -> str | None: ...

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


class ClipMeasure:
    """The CLIP score of an image and its prompt, and the cosine of its features to those of the plain image."""

    names = ("CLIP score", "CLIP cosine to plain")

    def __init__(self, settings: ClipSettings):
        self._field, self.set = f"{FIELD}: clip", settings.set
        self._folder = model_folder(settings.model, self._field)
        self._device = str(open_device(self._field, settings.device))

    def check(self, shots: Sequence[Shot]) -> None:
        """Accept any number of images."""

    def load(self) -> None:
        """Load the model."""
        self._encoder = ImageEncoder(self._folder, self._device, self._field)
        self._network = ClipFeatures(self._encoder)
        self.record: Record = {**self._network.record, "set": self.set}

    def measure(self, sample: Sample, folder: pathlib.Path) -> dict[str, QualityFigure]:
        """Return both figures. Prompts that are too long for the model are cut off."""
        saved = SavedFeatures(folder, self._network)
        images, plain = (saved.of(each, sample.shots) for each in (sample.images, sample.plain))
        prompts = list(dict.fromkeys(shot.prompt.prompt for shot in sample.shots))
        rows = self._encoder.embed_texts(prompts, truncate=True).cpu().numpy()
        text_of = dict(zip(prompts, rows, strict=True))
        texts: list[np.ndarray | None] = [text_of[shot.prompt.prompt] for shot in sample.shots]
        pairs = ((clip_scores, texts), (cosines, plain))
        figures = (_figure(_paired(function, images, others), sample.seeds) for function, others in pairs)
        return {name: figure for name, figure in zip(self.names, figures, strict=True) if figure}


class FrechetMeasure:
    """The Fréchet distance of the features of all images with the role other to those of reference images."""

    def __init__(self, settings: FidSettings | FrechetSettings):
        self._network: FeatureNetwork | None = None
        name = "fid" if isinstance(settings, FidSettings) else "frechet"
        self._field, self.set = f"{FIELD}: {name}", settings.set
        device = open_device(self._field, settings.device)
        where = settings.reference
        self._reference = Reference(where, f"{self._field}.reference") if where else None
        self._reference_features: np.ndarray | None = None
        if isinstance(settings, FidSettings):
            path = weight_file(f"{self._field}.features", settings.features)
            with naming(self._field):
                self._network = InceptionV3(path, device)
            title = "FID"
        else:
            self._folder, self._kind = image_model(f"{self._field}.model", settings.model)
            self._device, title = str(device), f"Fréchet distance ({self._kind})"
        self.names = (title if self._reference else f"{title} to plain",)

    @property
    def record(self) -> Record:
        """Return the record of the network, with the set and the reference."""
        assert self._network is not None
        reference = self._reference
        origin = None if reference is None else {"images": reference.count, "fingerprint": reference.fingerprint}
        return {**self._network.record, "set": self.set, "reference": origin or "plain"}

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


class LpipsMeasure:
    """The LPIPS distance to the plain image at the same seed."""

    names = ("LPIPS to plain",)

    def __init__(self, settings: LpipsSettings):
        self._field, self.set = f"{FIELD}: lpips", settings.set
        device = open_device(self._field, settings.device)
        backbone = weight_file(f"{self._field}.backbone", settings.backbone)
        weights = weight_file(f"{self._field}.weights", settings.weights)
        with naming(self._field):
            self._network = Lpips(backbone, weights, device)
        self.record: Record = {**self._network.record, "set": self.set}

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
        """Return the distance."""
        plain = sample.plain

        def compute(shots: list[Shot], pixels: np.ndarray) -> list[float | None]:
            read = [plain.read(shot) for shot in shots]
            distances = self._network.distances(pixels, np.stack([each for each, _ in read]))
            return [None if flag else float(value) for value, (_, flag) in zip(distances, read, strict=True)]

        path = folder / key_of(self._network.record) / f"{sample.images.path.name}.jsonl"
        found = ImageValues(path, "distances").of(
            sample.images,
            sample.shots,
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
    """Raise InputError if a measure lacks images.

    ``shots`` are the reported ones of the role other of each task, by its name. The first of two prompts chooses.
    """
    for measure in measures:
        for name, others in shots.items():
            own = _of_set(others, measure.set)
            if not own:
                sets = ", ".join(dict.fromkeys(shot.prompt.set for shot in others)) or "none"
                which = f"set={measure.set}" if measure.set else "figures of quality"
                raise InputError(
                    f"{FIELD}: {which} needs at least 2 prompts with the role {OTHER}, of which one reports; {name} "
                    f"has some in: {sets}; prompt sets are added with role={OTHER}"
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
    """Return all figures of a variant on ``others``, the shots of the role other that report, by prompt, then by seed.

    ``images`` are its images, ``plain`` those of the plain pipeline, and ``folder`` is that of saved features.
    """
    figures: dict[str, QualityFigure] = {}
    for each in measures if others else ():
        sample = Sample(images, plain, _of_set(others, each.set), seeds)
        figures |= each.measure(sample, folder)
    return figures


def _of_set(shots: Sequence[Shot], name: str | None) -> list[Shot]:
    """Return the shots of a prompt set, or all of them without a name."""
    return [shot for shot in shots if name is None or shot.prompt.set == name]


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
