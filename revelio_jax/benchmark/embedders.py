"""Load models that embed images or texts, from folders with safetensors and without code. Uses torch.

CLIP                          projected features of images or texts
DINO and other models of images    the token CLS of the last layer
models of texts               the mean of the last layer over the tokens, as all-MiniLM-L6-v2 is trained for
the judge of a miniature      means and maxima of its channels, for images of 32 x 32 pixels
"""

import contextlib
import pathlib
import typing
from collections.abc import Callable, Sequence

import numpy as np
import torch
import transformers

from revelio_jax.benchmark import miniature_judge
from revelio_jax.errors import InputError
from revelio_jax.pipelines.devices import device
from revelio_jax.pipelines.loading import input_errors

BATCH = 64
JUDGED = 32  # pixels of an image that a miniature's judge sees

Embed = Callable[[Sequence[typing.Any]], np.ndarray]
"""A function from images, PIL, or texts to float32 [N, E]."""


def open_embedder(folder: pathlib.Path, kind: typing.Literal["image", "text"], on: str, field: str) -> Embed:
    """Load the model in ``folder`` for samples of ``kind`` on device ``on``, in float32.

    ``field`` is the setting that names the folder. Raise InputError, which names it, if the model cannot be loaded or
    embeds no samples of this kind.
    """
    what = f"{field} is {str(folder)!r}"
    if not (folder / "config.json").is_file():
        if kind == "text":
            raise InputError(f"{what}; a judge of images cannot embed texts")
        return _judge(folder, what)
    place = device(on)
    with _reading(what):
        model_type = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ).model_type
        loading: typing.Any = transformers.AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
        model, loaded = loading
        # transformers fills them with random values. Poolers are not used, and some folders lack them.
        if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
            raise InputError(f"{what}; its weights lack {missing[0]}")
        model = model.eval().to(place)
        if kind == "image":
            return _of_images(folder, model, model_type == "clip", place, what)
        return _of_texts(folder, model, model_type == "clip", place, what)


def _judge(folder: pathlib.Path, what: str) -> Embed:
    with _reading(what):
        judge = miniature_judge.load(folder)

    @torch.inference_mode()
    def embed(images: Sequence[typing.Any]) -> np.ndarray:
        for image in images:
            if image.size != (JUDGED, JUDGED):
                raise InputError(
                    f"{what}, a judge of images of {JUDGED} x {JUDGED} pixels; an image has {image.width} x "
                    f"{image.height}"
                )
        return judge.features(miniature_judge.to_tensor(np.stack([np.asarray(image) for image in images]))).numpy()

    return embed


def _of_images(folder: pathlib.Path, model: typing.Any, is_clip: bool, place: torch.device, what: str) -> Embed:
    # Resizes with Pillow, whether or not torchvision is installed.
    processor = transformers.AutoImageProcessor.from_pretrained(
        folder, local_files_only=True, backend="pil", trust_remote_code=False
    )

    @torch.inference_mode()
    def embed(images: Sequence[typing.Any]) -> np.ndarray:
        with _reading(what):
            pixels = processor(images=list(images), return_tensors="pt")["pixel_values"].to(place)
            if is_clip:
                return model.get_image_features(pixels).pooler_output.cpu().numpy()
            return model(pixel_values=pixels).last_hidden_state[:, 0].cpu().numpy()

    return embed


def _of_texts(folder: pathlib.Path, model: typing.Any, is_clip: bool, place: torch.device, what: str) -> Embed:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    text = model.config.text_config if is_clip else model.config
    longest = min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", 1 << 20))

    @torch.inference_mode()
    def embed(texts: Sequence[typing.Any]) -> np.ndarray:
        with _reading(what):
            tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
            inputs = {"input_ids": tokens.input_ids.to(place), "attention_mask": tokens.attention_mask.to(place)}
            if is_clip:
                return model.get_text_features(**inputs).pooler_output.cpu().numpy()
            mask = inputs["attention_mask"][..., None].float()
            summed = (model(**inputs).last_hidden_state * mask).sum(1)
            return (summed / mask.sum(1).clamp(min=1)).cpu().numpy()

    return embed


def _reading(what: str) -> contextlib.AbstractContextManager[None]:
    return input_errors(f"{what}; it cannot embed the samples")
