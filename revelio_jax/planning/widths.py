"""Look up the width of a hook point without a store, in a pipeline's folder or in a table of hub models."""

import pathlib

from revelio_jax import json_text, shipped
from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import BY_NAME

# Widths of text encoders, by hub id and first part of the hook point's name; from the models' config.json.
HUB = {
    "CompVis/stable-diffusion-v1-4": {"clip": 768},
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {"clip": 768},
    "stabilityai/stable-diffusion-xl-base-1.0": {"clip_l": 768, "clip_g": 1280},
    "stabilityai/sdxl-turbo": {"clip_l": 768, "clip_g": 1280},
    "black-forest-labs/FLUX.1-dev": {"clip": 768, "t5": 4096},
    "black-forest-labs/FLUX.1-schnell": {"clip": 768, "t5": 4096},
}


def known_width(model_id: str | None, family: str, site: str) -> int | None:
    """Return the width of a text encoder's hook point, or None if it is unknown.

    The width of joined hook points, for example ``clip_l.layer.10+clip_g.layer.28``, is the sum of their widths.
    """
    parts = [_encoder_width(model_id, family, part.partition(".")[0]) for part in site.split("+")]
    known = [width for width in parts if width is not None]
    return sum(known) if len(known) == len(parts) else None


def _encoder_width(model_id: str | None, family: str, encoder: str) -> int | None:
    if not model_id or encoder not in BY_NAME[family].text_encoders:
        return None
    path = pathlib.Path(shipped.locate(model_id)) / BY_NAME[family].text_encoders[encoder] / "config.json"
    if path.is_file():
        try:
            config = json_text.parse_object(path.read_bytes())
        except ValueError as error:
            raise InputError(f"config.model.id is {model_id!r}; {path} is malformed: {error}") from error
        return config.get("d_model", config.get("hidden_size"))  # T5, CLIP
    return HUB.get(model_id, {}).get(encoder)
