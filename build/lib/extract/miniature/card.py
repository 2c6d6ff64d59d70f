"""The model card of a miniature, with the figures that were measured."""

import typing

from extract.miniature.data import CATEGORIES, STYLES, Picture

_TEXT = """\
---
license: cc-by-4.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Miniature {model}: emoji in three styles

A `diffusers.{pipeline}` in small, trained from scratch so that a method for {model}
can be tried end to end on a laptop. 32 x 32 pixels; prompts such as "a glossy 3d emoji of a red apple".

```python
pipe = {pipeline}.from_pretrained(folder, torch_dtype=torch.float32)
pipe("glossy 3d emoji of red apple", height=32, width=32, num_inference_steps={steps}, {guided})
```

## Data
{objects} objects ({categories}), each in {styles}: {pairs} pictures, of which {held_out} style x object pairs
were held out of the pipeline's training.

| style | npm package | licence |
|---|---|---|
| noto | emoji-datasource-google 16.0.0 | Apache-2.0 |
| flat | emoji-datasource-twitter 16.0.0 | CC-BY-4.0 (Twemoji, (c) Twitter, Inc and other contributors) |
| glossy 3d | @lobehub/fluent-emoji-3d 1.1.0 | MIT (Fluent Emoji, (c) Microsoft) |

The pictures are not here; `python -m extract.miniature.train{flag}` fetches them and makes all of this
again. The autoencoder and the judge also saw the other emoji of these packages. These weights are
released under CC-BY-4.0, the strictest of the three.

## Quality, by the judge
| what | style | category | pictures |
|---|---|---|---|
| style x object pairs it was trained on | {trained_pairs} |
| pairs held out of its training | {held_out_pairs} |
| the judge itself, on objects it never saw | {judge_on_unseen_objects} |

{prompts} prompts and {seeds} seeds, {steps} {sampler} steps, guidance {guidance}; measured on these fp16
weights, run in float32. {judge} is the judge: a small convolutional network fitted on the
autoencoder's reconstructions. A judged share of pictures carries the judge's own error.

## Training
{workers} processes of one core each. Autoencoder {vae_s} s ({vae_steps} steps), {training}, judge
{judge_s} s ({judge_steps} steps).

## Limits
It knows these {objects} objects and nothing else. Expressions of faces and other fine detail are often wrong.
`prompts.csv` has every caption with its labels (`held_out` 1 where the pair's picture was never seen).
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


def render(measured: dict[str, typing.Any], pictures: list[Picture], pipeline: str) -> str:
    """The card of the miniature ``pipeline``, "sd" or "flux"."""
    figures = (
        measured["sampling"]
        | {f"{key}_s": value for key, value in measured["seconds"].items()}
        | {f"{key}_steps": value for key, value in measured["steps"].items()}
    )
    own = {key: text.format(**figures) for key, text in {"sd": _SD, "flux": _FLUX}[pipeline].items()}
    named = [p for p in pictures if p.category]
    rows = {
        key: "{style:.3f} | {category:.3f} | {pictures}".format(**measured[key])
        for key in ("trained_pairs", "held_out_pairs", "judge_on_unseen_objects")
    }
    return _TEXT.format(
        objects=len({p.name for p in named}),
        categories=", ".join(CATEGORIES),
        styles=", ".join(STYLES),
        pairs=len(named),
        held_out=sum(p.held_out for p in named),
        prompts=measured["prompts"],
        seeds=measured["seeds"],
        workers=measured["workers"],
        **figures,
        **own,
        **rows,
    )
