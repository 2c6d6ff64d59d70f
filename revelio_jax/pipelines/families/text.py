"""A text encoder of transformers without a pipeline: BERT and similar models, CLIP, T5, or a decoder."""

import operator
import typing
from collections.abc import Iterable, Iterator

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families.base import Family
from revelio_jax.pipelines.hooks import HookPoint

# Attribute of a transformers model that holds its layers: BERT, DistilBERT, BART and CLIP, T5, current decoders, GPT-2.
LAYERS = ("encoder.layer", "transformer.layer", "encoder.layers", "encoder.block", "layers", "h")


class TextEncoderAlone(Family):
    """Hook points: text.layer.N."""

    name = "text"
    components = ("encoder",)
    text_encoders: typing.ClassVar[dict[str, str]] = {"text": "encoder"}
    is_standalone = True

    def encoder_hook_points(self, prefix: str, component: str, encoder: typing.Any) -> Iterator[HookPoint]:
        for i, module in enumerate(_layers(encoder)):
            yield HookPoint(f"{prefix}.layer.{i}", component, module, encoder.config.hidden_size)


def _layers(model: typing.Any) -> Iterable[typing.Any]:
    for path in LAYERS:
        try:
            return operator.attrgetter(path)(model)
        except AttributeError:
            continue
    raise InputError(f"{type(model).__name__} has no known list of layers; known: {', '.join(LAYERS)}")
