"""CLIP as a judge: zero-shot classification with the texts of classes.

Images and texts become unit vectors. The probabilities of the classes are the softmax of their products with an image,
multiplied by CLIP's scale (arXiv 2103.00020).
"""

import contextlib
import dataclasses
import pathlib
import typing

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
    template: str = field("{}", "text of a class, in which {} is its name")
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
        with _reading(folder):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **NO_CODE)
        words = [folder / name for name in TOKENIZER]
        texts = [settings.template.replace("{}", name) for name in settings.classes]
        self._texts = self._images.embed_texts(tokenizer, texts)
        self.record: Record = {
            "name": "clip",
            "version": transformers.__version__,
            "weights": self._images.weights | hashes(*(file for file in words if file.is_file())),
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


class ImageEncoder:
    """A CLIP model in float32 and its image processor, from a folder. ``width`` is the width of an embedding.

    ``weights`` has the SHA-256 of its weights and of the image processor's settings, ``processor`` the class of the
    image processor. Raise InputError if the folder has another model or lacks weights.
    """

    def __init__(self, folder: pathlib.Path, device: str):
        try:
            self._device = devices.device(device)
        except InputError as error:
            raise InputError(str(error).replace("config.model.device", f"{FIELD}.device")) from error
        with _reading(folder):
            kind = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **NO_CODE).model_type
            if kind != "clip":
                raise InputError(f"{FIELD}.model is {str(folder)!r}, a model of the type {kind!r}; it must be clip")
            self._processor = PROCESSOR.from_pretrained(folder, local_files_only=True)
            loading: typing.Any = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        model, loaded = loading
        if missing := sorted(loaded["missing_keys"]):  # transformers fills them with random values
            raise InputError(f"{FIELD}.model is {str(folder)!r}; its weights lack {missing[0]}")
        self._model: typing.Any = model.eval().to(self._device)
        self.width = int(self._model.config.projection_dim)
        self.processor = type(self._processor).__name__  # its class decides how images are resized
        self.weights = hashes(*sorted(folder.glob("*.safetensors")), *folder.glob("preprocessor_config.json"))

    @torch.no_grad()
    def embed_texts(self, tokenizer: typing.Any, texts: list[str]) -> torch.Tensor:
        """Return the unit embeddings [N, width] of texts. Raise InputError if a text is too long for the model."""
        most = self._model.config.text_config.max_position_embeddings
        tokens = tokenizer(texts, padding=True, return_tensors="pt").to(self._device)
        if tokens.input_ids.shape[1] > most:
            raise InputError(
                f"{FIELD}.classes has a text of {tokens.input_ids.shape[1]} tokens; it must be at most {most}"
            )
        inputs = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
        return torch.nn.functional.normalize(self._model.get_text_features(**inputs).pooler_output, dim=1)

    @torch.no_grad()
    def probabilities(self, pixels: np.ndarray, classes: torch.Tensor) -> list[list[float]]:
        """Return the probabilities [N, classes] of unit embeddings [classes, width] for uint8 images."""
        scale, rows = self._model.logit_scale.exp(), list[list[float]]()
        for start in range(0, len(pixels), BATCH):
            images = list(pixels[start : start + BATCH])
            inputs = self._processor(images=images, input_data_format="channels_last", return_tensors="pt")
            embeddings = self._model.get_image_features(inputs["pixel_values"].to(self._device)).pooler_output
            logits = scale * torch.nn.functional.normalize(embeddings, dim=1) @ classes.to(self._device).T
            rows += logits.softmax(1).tolist()
        return rows


def _reading(folder: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    return input_errors(f"{FIELD}.model is {str(folder)!r}; it cannot be loaded")


def model_folder(model: str | None) -> pathlib.Path:
    """Return the folder of a CLIP model. Raise InputError if it has no config.json."""
    folder = pathlib.Path(shipped.locate(model)) if model else None
    if folder is None or not (folder / "config.json").is_file():
        raise InputError(f"{FIELD}.model is {model!r}; it must be the folder of a CLIP model")
    return folder
