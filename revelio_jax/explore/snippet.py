"""Write the Python program that samples the image of the page."""

import base64
import json

from revelio_jax.explore.backend import Backend
from revelio_jax.explore.requests import SamplingRequest, SteeringRequest
from revelio_jax.pipelines import text_to_image, weight_files
from revelio_jax.steering.strengths import Clamp, Strength


def snippet(backend: Backend, request: SamplingRequest, steering: SteeringRequest | None = None) -> str:
    """Return a program that samples the same image: steered, or plain without ``steering``.

    The image is the same bit for bit, except with config.model.compile, which rounds differently.
    """
    masked = steering is not None and steering.mask is not None
    learned = steering is not None and any(key in backend.learned for key, _ in steering.concepts)
    clamped = steering is not None and any(isinstance(value, Clamp) for _, value in steering.concepts)
    lines = ["import base64", "import io", ""] if masked else []
    lines += ["import numpy as np"] if masked else []
    lines += ["import torch", f"from diffusers import {_class_name(backend)}"]
    lines += ["from PIL import Image"] if masked else []
    if steering:
        lines += ["", f"from revelio_jax.steering import {'Clamp, ' if clamped else ''}Steerer"]
    if learned:
        lines += ["from revelio_jax.steering.learned_concepts import saved_concepts"]
    lines += ["", f"pipe = {_pipeline(backend)}"]
    call = [
        f"    {_quoted(request.prompt)},",
        f"    height={request.height},",
        f"    width={request.width},",
        f"    num_inference_steps={request.steps},",
        *(f"    {name}={_quoted(value)}," for name, value in backend.call_arguments(request).items()),
        f"    generator=torch.Generator().manual_seed({request.seed}),",
    ]
    if not steering:
        return "\n".join([*lines, "image = pipe(", *call, ").images[0]", 'image.save("plain.png")', ""])
    lines += [f"steerer = Steerer.from_pretrained({_quoted(backend.sae)})"]
    if masked:
        lines += _wrapped("mask = ", base64.b64encode(steering.mask or b"").decode())
        lines += ["mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(mask))), np.float32) / 255"]
    if isinstance(steering.positions, tuple):
        lines += [f"positions = torch.zeros({backend.positions}, dtype=torch.bool)"]
        lines += [f"positions[{list(steering.positions)}] = True"]
    lines += ["", "with steerer.attach(", "    pipe,", "    {"]
    lines += [f"        {_quoted(key)}: {_strength(value)}," for key, value in steering.concepts]
    lines += ["    },"]
    if any(isinstance(key, str) for key, _ in steering.concepts):
        lines += [f"    rule={_quoted(steering.rule)},"]
    if isinstance(steering.positions, tuple):
        lines += ["    positions=positions,"]
    elif steering.positions != "all":
        lines += [f"    positions={_quoted(steering.positions)},"]
    lines += [f"    steps={steering.steps!r},"] if steering.steps else []
    lines += [f"    ramp={steering.ramp!r},"] if steering.ramp != (1.0, 1.0) else []
    lines += ["    mask=torch.from_numpy(mask),"] if masked else []
    lines += [f"    pooled={steering.pooled},"] if steering.pooled is not None else []
    if steering.negative_branch is not None:
        lines += [f"    negative_branch={steering.negative_branch},"]
    lines += [f"    learned=saved_concepts({_quoted(backend.config.run)}),"] if learned else []
    lines += ["):", "    image = pipe(", *(f"    {line}" for line in call), "    ).images[0]"]
    return "\n".join([*lines, 'image.save("steered.png")', ""])


def _pipeline(backend: Backend) -> str:
    model = backend.config.model
    revision = f", revision={_quoted(model.revision)}" if model.revision else ""
    source = backend.source
    variant = weight_files.variant(source, source.layout.denoiser or "")
    options = f"{revision}, dtype=torch.{model.dtype}"
    options += f", variant={_quoted(variant)}" if variant else ""
    options += ", safety_checker=None" if any(source.index.get("safety_checker") or ()) else ""
    loaded = f"{_class_name(backend)}.from_pretrained({_quoted(model.id)}{options})"
    if model.offload != "none":
        return f"{loaded}\npipe.enable_{model.offload}_cpu_offload()"
    device = backend.pipe.device.type
    return loaded if device == "cpu" else f"{loaded}.to({_quoted(device)})"


def _class_name(backend: Backend) -> str:
    """Return the class that loads the pipeline; siblings of the text-to-image pipeline run as one."""
    name = text_to_image.pipeline_class(backend.source).__name__
    return "DiffusionPipeline" if name == backend.source.class_name else name


def _quoted(value: str | float | None) -> str:
    """Return a value as Python code; texts are in double quotes, as formatters prefer."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _strength(value: Strength) -> str:
    return f"Clamp({value.value!r})" if isinstance(value, Clamp) else repr(value)


def _wrapped(start: str, text: str) -> list[str]:
    """Return the lines of an assignment of a long string, split in parentheses."""
    parts = [text[i : i + 88] for i in range(0, len(text), 88)]
    return [f"{start}(", *(f"    {_quoted(part)}" for part in parts), ")"]
