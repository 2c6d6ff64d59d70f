"""The model card of a miniature, with its measurements."""

import typing

from extract.miniature.data import CATEGORIES, STYLES, Emoji

_TEXT = """\
---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Miniature {model}: emoji in three styles

A small `diffusers.{pipeline}`, trained from scratch, to try a method for {model} end to end on a
laptop. It generates images of 32 x 32 pixels from prompts such as "a glossy 3d emoji of a red apple".

```python
pipe = {pipeline}.from_pretrained(folder, dtype=torch.float32)
pipe("glossy 3d emoji of red apple", height=32, width=32, num_inference_steps={steps}, {guided})
```

## Data
{objects} objects ({categories}), each in {styles}: {pairs} images. {held_out} pairs of style and object
were held out of the pipeline's training.

| style | npm package | license |
|---|---|---|
| noto | emoji-datasource-google 16.0.0 | Apache-2.0 |
| flat | emoji-datasource-twitter 16.0.0 | CC-BY-4.0 (Twemoji, (c) Twitter, Inc and other contributors) |
| glossy 3d | @lobehub/fluent-emoji-3d 1.1.0 | MIT (Fluent Emoji, (c) Microsoft) |

The images are not included; `python -m extract.miniature.train{flag}` downloads them and repeats the
training. The autoencoder and the judge were also trained on the other emoji of these packages. The weights are
released under CC-BY-4.0, the strictest of the three licenses.

## Accuracy, measured by the judge
| images | style | category | number |
|---|---|---|---|
| pairs in its training | {trained_pairs} |
| held-out pairs | {held_out_pairs} |
| the judge itself, on held-out objects | {judge_on_unseen_objects} |

{prompts} prompts and {seeds} seeds, {steps} {sampler} steps, guidance {guidance}, measured on these fp16 weights
in float32. The judge, {judge}, is a small convolutional network trained on
reconstructions of the autoencoder. Its own errors are part of these numbers.

## Training
{workers} processes with one core each. Autoencoder {vae_s} s ({vae_steps} steps), {training}, judge
{judge_s} s ({judge_steps} steps).

## Limits
The pipeline knows these {objects} objects only. Facial expressions and other fine details are often wrong.
`prompts.csv` has every caption with its labels; `held_out` is 1 if the pair was held out.
"""

_SD = {
    "model": "Stable Diffusion",
    "pipeline": "StableDiffusionPipeline",
    "flag": "",
    "guided": "guidance_scale={guidance}",
    "sampler": "DDIM",
    "judge": "`judge.safetensors`",
    "training": """\
text encoder and U-Net
jointly {denoiser_s} s ({denoiser_steps} steps of batch 64, v-prediction, AdamW, averaged weights)""",
}
_FLUX = {
    "model": "FLUX",
    "pipeline": "FluxPipeline",
    "flag": " --pipeline flux",
    "guided": """\
true_cfg_scale={guidance},
     negative_prompt="", max_sequence_length=20""",
    "sampler": "Euler",
    "judge": "`../sd/judge.safetensors`",
    "training": """\
the same as
the miniature Stable Diffusion's, text encoders {encoders_s} s ({encoders_steps} steps of batch 64) and
then frozen, transformer {transformer_s} s ({transformer_steps} steps of batch 48, flow matching, AdamW,
averaged weights)""",
}

TEXTS = {"sd": _SD, "flux": _FLUX}


def render(measured: dict[str, typing.Any], emojis: list[Emoji], pipeline: str) -> str:
    """Return the card of a miniature. ``pipeline`` is a key of ``TEXTS``."""
    numbers = (
        measured["sampling"]
        | {f"{key}_s": value for key, value in measured["seconds"].items()}
        | {f"{key}_steps": value for key, value in measured["steps"].items()}
    )
    own = {key: text.format(**numbers) for key, text in TEXTS[pipeline].items()}
    objects = [emoji for emoji in emojis if emoji.category]
    rows = {
        key: "{style:.3f} | {category:.3f} | {pictures}".format(**measured[key])
        for key in ("trained_pairs", "held_out_pairs", "judge_on_unseen_objects")
    }
    return _TEXT.format(
        objects=len({emoji.name for emoji in objects}),
        categories=", ".join(CATEGORIES),
        styles=", ".join(STYLES),
        pairs=len(objects),
        held_out=sum(emoji.held_out for emoji in objects),
        prompts=measured["prompts"],
        seeds=measured["seeds"],
        workers=measured["workers"],
        **numbers,
        **own,
        **rows,
    )
