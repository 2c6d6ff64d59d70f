"""Ask an image-text-to-text model of transformers from a folder or the hub, with greedy decoding. Uses torch."""

import functools
import hashlib
import io
import pathlib
import typing

import PIL.Image
import torch
import transformers
from safetensors import SafetensorError

from revelio_jax.config import TagsConfig
from revelio_jax.errors import InputError
from revelio_jax.interpret.tags.answers import VisionLanguageModel
from revelio_jax.interpret.tags.questions import Question
from revelio_jax.pipelines.loading import LOAD_ERRORS, device


def open_model(options: TagsConfig, on: str) -> VisionLanguageModel:
    """Open the model config.tags.model on device ``on``, in the dtype of its checkpoint, without remote code.

    The weights are loaded at the first question, so a run whose answers are all cached never loads them. Raise
    InputError if the model is not an image-text-to-text model or has no chat template.
    """
    name, place = options.model or "", device(on)
    processor = _load(transformers.AutoProcessor, name)
    if not getattr(processor, "chat_template", None):
        raise InputError(f"config.tags.model is {name!r}; its processor has no chat template")

    @functools.cache
    def model() -> typing.Any:
        return _load(transformers.AutoModelForImageTextToText, name, dtype="auto").eval().to(place)

    def ask(question: Question) -> str:
        return answer(model(), processor, question, options.max_tokens)

    return VisionLanguageModel(name, f"transformers {name} {_fingerprint(name)}", ask)


def _load(cls: typing.Any, name: str, **options: typing.Any) -> typing.Any:
    try:
        return cls.from_pretrained(name, trust_remote_code=False, **options)
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise InputError(
            f"config.tags.model is {name!r}; it must be an image-text-to-text model that transformers can load: "
            f"{_first_line(error)}"
        ) from error


@torch.inference_mode()
def answer(model: typing.Any, processor: typing.Any, question: Question, max_tokens: int) -> str:
    """Return the model's greedily decoded answer. Raise InputError if it fails, for example out of memory."""
    content: list[dict[str, typing.Any]] = [
        {"type": "image", "image": PIL.Image.open(io.BytesIO(image)).convert("RGB")} for image in question.images
    ]
    content.append({"type": "text", "text": question.text})
    try:
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device, model.dtype)
        output = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    except (*LOAD_ERRORS, IndexError) as error:
        raise InputError(
            f"config.tags.model fails on a question with {len(question.images)} images; if they are too many, lower "
            f"config.tags.images: {_first_line(error)}"
        ) from error
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _fingerprint(name: str) -> str:
    """Return a hash of the file names, sizes and times of a local folder, whose weights can change; "" for a hub id."""
    folder = pathlib.Path(name)
    if not folder.is_dir():
        return ""
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    listing = " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]
