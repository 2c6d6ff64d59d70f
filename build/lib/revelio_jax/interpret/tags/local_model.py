"""An image-text-to-text model of transformers, from a folder or the hub, that answers greedily. torch."""

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
    """The model that config names, in its checkpoint's dtype on device ``on``; no code of the hub is run.

    Its weights are loaded with the first question, which may never come where answers are kept. Raises
    InputError where it is no such model, or has no chat template.
    """
    name, place = options.model, device(on)
    processor = _loaded(transformers.AutoProcessor, name)
    if not getattr(processor, "chat_template", None):
        raise InputError(f"config.tags.model is {name!r}, whose processor has no chat template")

    @functools.cache
    def model() -> typing.Any:
        return _loaded(transformers.AutoModelForImageTextToText, name, dtype="auto").eval().to(place)

    def ask(question: Question) -> str:
        return answer(model(), processor, question, options.max_tokens)

    return VisionLanguageModel(name, f"transformers {name} {_fingerprint(name)}", ask)


def _loaded(cls: typing.Any, name: str, **options) -> typing.Any:
    try:
        return cls.from_pretrained(name, **options)
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise InputError(
            f"config.tags.model is {name!r}, which is no image-text-to-text model that transformers "
            f"can load here: {_first_line(error)}"
        ) from error


@torch.inference_mode()
def answer(model: typing.Any, processor: typing.Any, question: Question, most_tokens: int) -> str:
    """What a model says to a question, greedily. Raises InputError where it fails, as for want of memory."""
    content: list[dict[str, typing.Any]] = [
        {"type": "image", "image": PIL.Image.open(io.BytesIO(picture)).convert("RGB")} for picture in question.pictures
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
        made = model.generate(**inputs, max_new_tokens=most_tokens, do_sample=False)
    except (*LOAD_ERRORS, IndexError) as error:
        raise InputError(
            f"config.tags.model fails to answer a question with {len(question.pictures)} pictures; "
            f"fewer are config.tags.images: {_first_line(error)}"
        ) from error
    return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _fingerprint(name: str) -> str:
    """Of a folder the files with their sizes and times, since its name may stand for other weights soon."""
    folder = pathlib.Path(name)
    if not folder.is_dir():
        return ""
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    told = " ".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
