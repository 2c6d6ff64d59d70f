"""cfg.json and the model card of an SAE folder. The trainer writes both, and steering publishes them.

The trainer never imports torch and steering never imports JAX, so this module imports neither.
"""

import json
import re
import typing

from revelio_jax.sae_folder.cfg import Cfg, SaeMetadata, TopkFields

FORMAT_VERSION = 1
# The SAELens release with this layout; SAELens treats a folder without a version as an old one.
SAE_LENS_VERSION = "6.54.12"
CODES = {
    "topk": "TopK(ReLU((x - b_dec) @ W_enc + b_enc))",
    "jumprelu": "JumpReLU((x - b_dec) @ W_enc + b_enc, threshold)",
    "standard": "ReLU((x - b_dec) @ W_enc + b_enc)",
}
ACTIVE = {
    "topk": "at most {k} active on a row",
    "jumprelu": "about {k} active on a row",
    "standard": "any of them active on a row",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""owner/name"""


def cfg_json(architecture: str, d: int, latents: int, k: int | None, metadata: SaeMetadata) -> Cfg:
    """Return cfg.json in the layout of SAELens; ``metadata`` holds the fields that steering needs."""
    topk_fields: TopkFields = {"k": k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}
    return {
        "architecture": architecture,
        "d_in": d,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **topk_fields,
        "metadata": {
            **metadata,
            "sae_lens_version": SAE_LENS_VERSION,
            "sae_lens_training_version": None,
            "format_version": FORMAT_VERSION,
        },
    }


def card(cfg: Cfg, name: str = "FOLDER", license: str = "unknown") -> str:
    """Return the README.md of an SAE folder, from its cfg.json.

    ``name`` is the folder or hub id in the example, ``license`` is the hub's name of the license. Fields that cfg.json
    does not have are left out, because another library may have written it.
    """
    metadata, architecture = cfg["metadata"], cfg["architecture"]
    model = metadata.get("model_id") or ""
    site = metadata.get("site", "")
    k = metadata.get("k") or cfg.get("k")
    active = "latents above a threshold fire on a row" if architecture == "jumprelu" and not k else ""
    properties = {
        "Hook point": f"`{site}`",
        "Latents": f"{cfg['d_sae']:,} of width {cfg['d_in']}, {active or ACTIVE[architecture].format(k=k)}",
        "Token positions": metadata.get("positions"),
        "Training": _training(metadata),
        "Quality": _quality(metadata.get("evaluation")),
    }
    rows = "\n".join(f"| {name} | {text} |" for name, text in properties.items() if text)
    kind = "Dense autoencoder" if architecture == "standard" else "k-sparse autoencoder"
    return f"""---
{_front(model, license)}
---
# {kind} of {model or "a pipeline"}, {site}

Use it with revelio_jax to add or remove concepts while a diffusers pipeline generates images:

```python
import torch
from diffusers import DiffusionPipeline
from revelio_jax.steering import Steerer

pipe = DiffusionPipeline.from_pretrained({json.dumps(model or "MODEL")}, dtype=torch.float16).to("cuda")
steerer = Steerer.from_pretrained({json.dumps(name)})
with steerer.attach(pipe, {{"a concept": -1.0}}):  # negative removes, positive adds
    pipe("a prompt").images[0].save("image.png")
```

| | |
|---|---|
{rows}

    z = {CODES[architecture]}        x_hat = z @ W_dec + b_dec

Normalization is folded into the tensors, so x is the unnormalized activation of the pipeline. SAELens also reads this
folder: `sae_lens.SAE.load_from_disk(FOLDER)`.
"""


def _training(metadata: SaeMetadata) -> str | None:
    training, activations = metadata.get("training"), metadata.get("activations")
    if training is None or activations is None:  # written by another library
        return None
    try:
        return "by revelio_jax, {steps:,} steps on {rows:,} rows from a store of {count:,} rows".format(
            **training, count=activations["count"]
        )
    except (KeyError, TypeError, ValueError):  # written by another library
        return None


def _quality(evaluation: typing.Any) -> str:
    try:
        return (
            "on {rows:,} held-out rows: FVU {fvu:.5f}, cosine {cosine:.5f}, L0 {l0:.1f}, "
            "{dead_fraction:.1%} of the latents never fire"
        ).format(**evaluation)
    except (KeyError, TypeError, ValueError):
        return "not evaluated; `revelio evaluate` measures it"


def _front(model: str, license: str) -> str:
    """Return the card's YAML header, written as JSON values."""
    fields: dict[str, str | list[str]] = {"library_name": "saelens", "license": license}
    if HUB_ID.fullmatch(model):  # a local folder has no hub id
        fields["base_model"] = model
    fields["tags"] = ["sparse-autoencoder", "diffusion", "concept-steering", "revelio_jax"]
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in fields.items())
