"""CLIP as a judge: zero-shot classification with the texts of classes.

Images and texts become unit vectors. The probabilities of the classes are the softmax of their products with an image,
multiplied by CLIP's scale (arXiv 2103.00020). A noun is visible if its text is likelier than one about something.
"""

import contextlib
import dataclasses
import functools
import pathlib
import typing
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from revelio_jax import shipped
from revelio_jax.benchmark.judgment import (
    DETECTED,
    FIELD,
    Judgment,
    Record,
    check_known,
    check_settings,
    detection,
    hashes,
)
from revelio_jax.config.fields import field
from revelio_jax.errors import InputError
from revelio_jax.pipelines import devices
from revelio_jax.pipelines.loading import NO_CODE, input_errors

BATCH = 32
# Resizes with Pillow, as CLIP's authors do, whether or not torchvision is installed.
_NAME = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
PROCESSOR: typing.Any = getattr(transformers, _NAME)
TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt")


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """Zero-shot classification. Without ``column``, the judge detects the concept that some of the classes show."""

    model: str | None = field(None, "folder of a CLIP model of transformers, with image processor and tokenizer")
    classes: tuple[str, ...] = field((), "names of the classes, at least two")
    template: str = field("{}", "text of a class or a noun, in which {} is its name")
    absent: str | None = field(None, "text of an image without a noun; None: the template with the name 'something'")
    concept: tuple[str, ...] = field((), "classes that count as the concept; empty: the first one")
    threshold: float | None = field(
        None, "smallest probability of the concept's classes that counts; None: the likeliest class", low=0.0, high=1.0
    )
    column: str | None = field(None, "label column whose values are the classes; None: detect the concept")
    device: str = field("auto", "auto, cuda, cuda:1, mps or cpu")


class ClipJudge:
    """A judge that compares images with the texts of classes."""

    def __init__(self, values: dict[str, typing.Any]):
        self._settings = settings = check_settings(ClipSettings, values)
        if len(set(settings.classes)) != len(settings.classes) or len(settings.classes) < 2:
            raise InputError(f"{FIELD}.classes is {list(settings.classes)}; it must be at least two different classes")
        if "{}" not in settings.template:
            raise InputError(f"{FIELD}.template is {settings.template!r}; it must contain {{}}, the name of a class")
        if settings.column and (settings.concept or settings.threshold is not None):
            raise InputError(
                f"{FIELD}.column is {settings.column!r}; concept and threshold need a judge without column"
            )
        self._concept = settings.concept or settings.classes[:1]
        check_known("concept", self._concept, settings.classes)
        self.columns = (settings.column or DETECTED,)
        folder = model_folder(settings.model)
        self._images = ImageEncoder(folder, settings.device)
        texts = [settings.template.replace("{}", name) for name in settings.classes]
        self._texts = self._images.embed_texts(texts)
        absent = settings.absent or settings.template.replace("{}", "something")
        self._absent = self._images.embed_texts([absent], truncate=True)[0]
        self._nouns = dict[str, torch.Tensor]()
        weights = self._images.weights | self._images.tokenizer_files
        self.noun_record: Record = {
            "name": "clip",
            "version": transformers.__version__,
            "weights": weights,
            "template": settings.template,
            "absent": absent,
            "image_processor": self._images.processor,
        }
        self.record: Record = {
            "name": "clip",
            "version": transformers.__version__,
            "weights": weights,
            "threshold": settings.threshold,
            "labels": list(settings.classes if settings.column else self._concept),
            "color_order": "RGB",
            "classes": texts,
            "image_processor": self._images.processor,
        }

    def judge(self, pixels: np.ndarray) -> list[Judgment]:
        """Return the class of each of the uint8 RGB images [N, height, width, 3], or whether it is the concept's."""
        names, settings, judgments = self._settings.classes, self._settings, list[Judgment]()
        for row in self._images.probabilities(pixels, self._texts):
            scores = dict(zip(names, row, strict=True))
            likeliest = max(names, key=lambda name: scores[name])
            if settings.column:
                judgments.append(Judgment({settings.column: likeliest}, scores))
            elif settings.threshold is None:
                judgments.append(detection(likeliest in self._concept, scores))
            else:
                judgments.append(detection(sum(scores[name] for name in self._concept) >= settings.threshold, scores))
        return judgments

    def nouns_visible(self, pixels: np.ndarray, nouns: Sequence[Sequence[str]]) -> list[list[bool]]:
        """Return whether each noun is likelier in its image than something, for uint8 images [N, height, width, 3]."""
        new = list(dict.fromkeys(noun for each in nouns for noun in each if noun not in self._nouns))
        if new:
            texts = [self._settings.template.replace("{}", noun) for noun in new]
            self._nouns |= dict(zip(new, self._images.embed_texts(texts, truncate=True), strict=True))
        return [
            [(image @ self._nouns[noun]).item() > (image @ self._absent).item() for noun in each]
            for image, each in zip(self._images.embed_images(pixels), nouns, strict=True)
        ]


class ImageEncoder:
    """A CLIP model in float32 and its image processor, from a folder. ``width`` is the width of an embedding.

    ``weights`` has the SHA-256 of its weights and of the image processor's settings, ``tokenizer_files`` those of the
    tokenizer's files, ``processor`` the class of the image processor. Raise InputError, which names ``field``, if the
    folder has another model or lacks weights.
    """

    def __init__(self, folder: pathlib.Path, device: str, field: str = FIELD):
        self._folder, self._field = folder, field
        try:
            self._device = devices.device(device)
        except InputError as error:
            raise InputError(str(error).replace("config.model.device", f"{field}.device")) from error
        with self._reading():
            kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **NO_CODE).model_type
            if kind != "clip":
                raise InputError(f"{field}.model is {str(folder)!r}, a model of the type {kind!r}; it must be clip")
            self._processor = PROCESSOR.from_pretrained(folder, local_files_only=True)
            loading: typing.Any = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        model, loaded = loading
        if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random values
            raise InputError(f"{field}.model is {str(folder)!r}; its weights lack {missing[0]}")
        self._model: typing.Any = model.eval().to(self._device)
        self.width = int(self._model.config.projection_dim)
        self.processor = type(self._processor).__name__  # its class decides how images are resized
        self.weights = hashes(*sorted(folder.glob("*.safetensors")), *folder.glob("preprocessor_config.json"))

    @property
    def tokenizer_files(self) -> dict[str, str]:
        """Return the SHA-256 of each file of the tokenizer."""
        return hashes(*(file for name in TOKENIZER if (file := self._folder / name).is_file()))

    @functools.cached_property
    def _tokenizer(self) -> typing.Any:
        with self._reading():
            return transformers.AutoTokenizer.from_pretrained(self._folder, local_files_only=True, **NO_CODE)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Return the unit embeddings [N, width] of texts.

        A text that is too long for the model is cut off if ``truncate``, otherwise InputError is raised.
        """
        most, rows = self._model.config.text_config.max_position_embeddings, list[torch.Tensor]()
        for start in range(0, len(texts), BATCH):
            tokens = self._tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=truncate,
                max_length=most if truncate else None,
                return_tensors="pt",
            ).to(self._device)
            if (length := tokens.input_ids.shape[1]) > most:
                raise InputError(f"{self._field}.classes has a text of {length} tokens; it must be at most {most}")
            inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
            rows.append(self._model.get_text_features(**inputs).pooler_output)
        return torch.nn.functional.normalize(torch.cat(rows), dim=1)

    @torch.no_grad()
    def embed_images(self, pixels: Sequence[np.ndarray] | np.ndarray) -> torch.Tensor:
        """Return the unit embeddings [N, width] of uint8 RGB images [height, width, 3]."""
        rows: list[torch.Tensor] = []
        for start in range(0, len(pixels), BATCH):
            images = list(pixels[start : start + BATCH])
            inputs = self._processor(images=images, input_data_format="channels_last", return_tensors="pt")
            rows.append(self._model.get_image_features(inputs["pixel_values"].to(self._device)).pooler_output)
        return torch.nn.functional.normalize(torch.cat(rows), dim=1)

    @torch.no_grad()
    def probabilities(self, pixels: np.ndarray, classes: torch.Tensor) -> list[list[float]]:
        """Return the probabilities [N, classes] of unit embeddings [classes, width] for uint8 images."""
        logits = self._model.logit_scale.exp() * self.embed_images(pixels) @ classes.to(self._device).T
        return logits.softmax(1).tolist()

    def _reading(self) -> contextlib.AbstractContextManager[None]:
        return input_errors(f"{self._field}.model is {str(self._folder)!r}; it cannot be loaded")


def model_folder(model: str | None, field: str = FIELD) -> pathlib.Path:
    """Return the folder of a CLIP model. Raise InputError, which names ``field``, if it has no config.json."""
    folder = pathlib.Path(shipped.locate(model)) if model else None
    if folder is None or not (folder / "config.json").is_file():
        raise InputError(f"{field}.model is {model!r}; it must be the folder of a CLIP model")
    return folder
