"""Tiny pipelines of every task, with the calls that tests and the matrix in docs/steering.md make of them.

``groups`` of a row has one letter for each group of rows that the first step passes to the denoiser, in order: P for
the prompt and N for the negative prompt.
"""

import contextlib
import dataclasses
import functools
import typing

import torch

from tests.helpers.pipeline_builders import (
    SIZE,
    OwnEncoding,
    Styled,
    as_class,
    controlnet,
    flux_controlnet,
    from_pipe,
    image,
    lcm,
    mask,
    motion,
    own,
    transformer,
    unet,
    with_ip_adapter,
    with_own_unet,
)

PROMPTS = ["a flat emoji of cat", "a glossy 3d emoji of red apple"]
NEGATIVE = ["red", "flat cat"]
TEXT_POINT = {"sd": "clip.layer.1", "sdxl": "clip_l.layer.1", "flux": "t5.block.1"}
DENOISER_POINT = {
    "sd": "unet.mid_block",
    "sdxl": "unet.down_blocks.1.attentions.0",
    "flux": "flux.double.0.image",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One pipeline of the matrix: how it is built from the text-to-image pipeline of its family, and called."""

    family: str
    build: typing.Callable[[typing.Any], typing.Any]
    groups: str
    call: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    repeats: int = 1  # rows of the denoiser for each prompt: frames of a video
    samples_text: bool = True  # whether its components can sample images of a text alone


GUIDED = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE, "output_type": "latent"}
TRUE_CFG = {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE, "output_type": "latent", "max_sequence_length": 10}
UNGUIDED_FLUX = {"output_type": "latent", "max_sequence_length": 10}
SQUARE = {"height": SIZE, "width": SIZE}
PICTURE = {"image": image(), "strength": 1.0}
EDIT = PICTURE | {"mask_image": mask()}
IP = {"ip_adapter_image_embeds": [torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(3))]}
VIDEO = {"num_frames": 3}

ROWS: dict[str, Row] = {
    "StableDiffusionPipeline": Row("sd", lambda pipe: pipe, "NP", GUIDED | SQUARE),
    "StableDiffusionPipeline, guidance off": Row(
        "sd", lambda pipe: pipe, "P", SQUARE | {"guidance_scale": 1.0, "output_type": "latent"}
    ),
    "StableDiffusionPipeline with an IP-Adapter": Row("sd", with_ip_adapter, "NP", GUIDED | SQUARE | IP),
    "StableDiffusionImg2ImgPipeline": Row("sd", as_class("StableDiffusionImg2ImgPipeline"), "NP", GUIDED | PICTURE),
    "StableDiffusionImg2ImgPipeline by from_pipe": Row(
        "sd", from_pipe("StableDiffusionImg2ImgPipeline"), "NP", GUIDED | PICTURE
    ),
    "StableDiffusionInpaintPipeline": Row(
        "sd", as_class("StableDiffusionInpaintPipeline"), "NP", GUIDED | EDIT | SQUARE
    ),
    "StableDiffusionInpaintPipeline, 9 channels": Row(
        "sd",
        as_class("StableDiffusionInpaintPipeline", unet(in_channels=9)),
        "NP",
        GUIDED | EDIT | SQUARE,
        samples_text=False,
    ),
    "StableDiffusionControlNetPipeline": Row(
        "sd", as_class("StableDiffusionControlNetPipeline", controlnet), "NP", GUIDED | {"image": image()} | SQUARE
    ),
    "StableDiffusionControlNetImg2ImgPipeline": Row(
        "sd",
        as_class("StableDiffusionControlNetImg2ImgPipeline", controlnet),
        "NP",
        GUIDED | PICTURE | {"control_image": image()},
    ),
    "StableDiffusionControlNetInpaintPipeline": Row(
        "sd",
        as_class("StableDiffusionControlNetInpaintPipeline", controlnet),
        "NP",
        GUIDED | EDIT | SQUARE | {"control_image": image()},
    ),
    "StableDiffusionInstructPix2PixPipeline": Row(
        "sd",
        as_class("StableDiffusionInstructPix2PixPipeline", unet(in_channels=8)),
        "PNN",
        GUIDED | {"image": image(), "image_guidance_scale": 1.5},
        samples_text=False,
    ),
    "StableDiffusionPAGPipeline": Row(
        "sd",
        as_class("StableDiffusionPAGPipeline", unet(), pag_applied_layers=["mid"]),
        "NPP",
        GUIDED | SQUARE | {"pag_scale": 2.0},
    ),
    "StableDiffusionPAGPipeline, guidance off": Row(
        "sd",
        as_class("StableDiffusionPAGPipeline", unet(), pag_applied_layers=["mid"]),
        "PP",
        SQUARE | {"pag_scale": 2.0, "guidance_scale": 0.0, "output_type": "latent"},
    ),
    "LatentConsistencyModelPipeline": Row(
        "sd",
        as_class("LatentConsistencyModelPipeline", lcm),
        "P",
        SQUARE | {"guidance_scale": 5.0, "output_type": "latent"},
    ),
    "LatentConsistencyModelImg2ImgPipeline": Row(
        "sd",
        as_class("LatentConsistencyModelImg2ImgPipeline", lcm),
        "P",
        PICTURE | {"guidance_scale": 5.0, "output_type": "latent"},
    ),
    "AnimateDiffPipeline": Row("sd", as_class("AnimateDiffPipeline", motion), "NP", GUIDED | SQUARE | VIDEO, repeats=3),
    "AnimateDiffVideoToVideoPipeline": Row(
        "sd",
        as_class("AnimateDiffVideoToVideoPipeline", motion),
        "NP",
        GUIDED | SQUARE | {"video": [list(image(3))] * 2, "strength": 1.0},
        repeats=3,
        samples_text=False,
    ),
    "StableDiffusionPAGImg2ImgPipeline": Row(
        "sd",
        as_class("StableDiffusionPAGImg2ImgPipeline", unet(), pag_applied_layers=["mid"]),
        "NPP",
        GUIDED | PICTURE | {"pag_scale": 2.0},
    ),
    "StableDiffusionPAGInpaintPipeline": Row(
        "sd",
        as_class("StableDiffusionPAGInpaintPipeline", unet(), pag_applied_layers=["mid"]),
        "NPP",
        GUIDED | EDIT | SQUARE | {"pag_scale": 2.0},
    ),
    "StableDiffusionControlNetPAGPipeline": Row(
        "sd",
        as_class("StableDiffusionControlNetPAGPipeline", with_own_unet(controlnet), pag_applied_layers=["mid"]),
        "NPP",
        GUIDED | SQUARE | {"image": image(), "pag_scale": 2.0},
    ),
    "AnimateDiffPAGPipeline": Row(
        "sd",
        as_class("AnimateDiffPAGPipeline", with_own_unet(motion), pag_applied_layers=["mid"]),
        "NPP",
        GUIDED | SQUARE | VIDEO | {"pag_scale": 2.0},
        repeats=3,
    ),
    "a pipeline that encodes prompts itself": Row("sd", own(OwnEncoding), "NP", GUIDED | SQUARE),
    "a subclass that changes the prompt": Row("sd", own(Styled), "NP", GUIDED | SQUARE),
    "StableDiffusionXLPipeline": Row("sdxl", lambda pipe: pipe, "NP", GUIDED | SQUARE),
    "StableDiffusionXLPipeline, guidance off (Turbo)": Row(
        "sdxl", lambda pipe: pipe, "P", SQUARE | {"guidance_scale": 0.0, "output_type": "latent"}
    ),
    "StableDiffusionXLPipeline, guidance by embedding (LCM)": Row(
        "sdxl",
        as_class("StableDiffusionXLPipeline", lcm),
        "P",
        SQUARE | {"guidance_scale": 5.0, "output_type": "latent"},
    ),
    "StableDiffusionXLPipeline with an IP-Adapter": Row("sdxl", with_ip_adapter, "NP", GUIDED | SQUARE | IP),
    "StableDiffusionXLImg2ImgPipeline": Row(
        "sdxl", as_class("StableDiffusionXLImg2ImgPipeline"), "NP", GUIDED | PICTURE
    ),
    "StableDiffusionXLInpaintPipeline": Row(
        "sdxl", as_class("StableDiffusionXLInpaintPipeline"), "NP", GUIDED | EDIT | SQUARE
    ),
    "StableDiffusionXLControlNetPipeline": Row(
        "sdxl", as_class("StableDiffusionXLControlNetPipeline", controlnet), "NP", GUIDED | {"image": image()} | SQUARE
    ),
    "StableDiffusionXLControlNetImg2ImgPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLControlNetImg2ImgPipeline", controlnet),
        "NP",
        GUIDED | PICTURE | {"control_image": image()},
    ),
    "StableDiffusionXLInstructPix2PixPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLInstructPix2PixPipeline", unet(in_channels=8)),
        "PNN",
        GUIDED | SQUARE | {"image": image(), "image_guidance_scale": 1.5},
        samples_text=False,
    ),
    "StableDiffusionXLPAGPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLPAGPipeline", unet(), pag_applied_layers=["down"]),
        "NPP",
        GUIDED | SQUARE | {"pag_scale": 2.0},
    ),
    "AnimateDiffSDXLPipeline": Row(
        "sdxl", as_class("AnimateDiffSDXLPipeline", motion), "NP", GUIDED | SQUARE | VIDEO, repeats=3
    ),
    "StableDiffusionXLInpaintPipeline, 9 channels": Row(
        "sdxl",
        as_class("StableDiffusionXLInpaintPipeline", unet(in_channels=9)),
        "NP",
        GUIDED | EDIT | SQUARE,
        samples_text=False,
    ),
    "StableDiffusionXLControlNetInpaintPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLControlNetInpaintPipeline", controlnet),
        "NP",
        GUIDED | EDIT | SQUARE | {"control_image": image()},
    ),
    "StableDiffusionXLPAGImg2ImgPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLPAGImg2ImgPipeline", unet(), pag_applied_layers=["down"]),
        "NPP",
        GUIDED | PICTURE | {"pag_scale": 2.0},
    ),
    "StableDiffusionXLPAGInpaintPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLPAGInpaintPipeline", unet(), pag_applied_layers=["down"]),
        "NPP",
        GUIDED | EDIT | SQUARE | {"pag_scale": 2.0},
    ),
    "StableDiffusionXLControlNetPAGPipeline": Row(
        "sdxl",
        as_class("StableDiffusionXLControlNetPAGPipeline", with_own_unet(controlnet), pag_applied_layers=["down"]),
        "NPP",
        GUIDED | SQUARE | {"image": image(), "pag_scale": 2.0},
    ),
    "FluxPipeline": Row("flux", lambda pipe: pipe, "P", SQUARE | {"output_type": "latent", "max_sequence_length": 10}),
    "FluxPipeline, true_cfg_scale": Row("flux", lambda pipe: pipe, "PN", TRUE_CFG | SQUARE),
    "FluxImg2ImgPipeline": Row("flux", as_class("FluxImg2ImgPipeline"), "PN", TRUE_CFG | SQUARE | PICTURE),
    "FluxInpaintPipeline": Row("flux", as_class("FluxInpaintPipeline"), "PN", TRUE_CFG | SQUARE | EDIT),
    "FluxControlNetPipeline": Row(
        "flux",
        as_class("FluxControlNetPipeline", flux_controlnet),
        "PN",
        TRUE_CFG | SQUARE | {"control_image": image()},
    ),
    "FluxControlPipeline": Row(
        "flux",
        as_class("FluxControlPipeline", transformer(in_channels=32, out_channels=16)),
        "P",
        SQUARE | {"control_image": image(), "output_type": "latent", "max_sequence_length": 10},
        samples_text=False,
    ),
    "FluxControlNetImg2ImgPipeline": Row(
        "flux",
        as_class("FluxControlNetImg2ImgPipeline", flux_controlnet),
        "P",
        UNGUIDED_FLUX | SQUARE | PICTURE | {"control_image": image()},
    ),
    "FluxControlNetInpaintPipeline": Row(
        "flux",
        as_class("FluxControlNetInpaintPipeline", flux_controlnet),
        "P",
        UNGUIDED_FLUX | SQUARE | EDIT | {"control_image": image()},
    ),
    "FluxControlImg2ImgPipeline": Row(
        "flux",
        as_class("FluxControlImg2ImgPipeline", transformer(in_channels=32, out_channels=16)),
        "P",
        UNGUIDED_FLUX | SQUARE | PICTURE | {"control_image": image()},
        samples_text=False,
    ),
    "FluxControlInpaintPipeline": Row(
        "flux",
        as_class("FluxControlInpaintPipeline", transformer(in_channels=32, out_channels=16)),
        "P",
        UNGUIDED_FLUX | SQUARE | EDIT | {"control_image": image()},
        samples_text=False,
    ),
    "FluxFillPipeline": Row(
        "flux",
        as_class("FluxFillPipeline", transformer(in_channels=36, out_channels=16)),
        "P",
        SQUARE | EDIT | {"output_type": "latent", "max_sequence_length": 10},
        samples_text=False,
    ),
    "FluxKontextPipeline": Row(
        "flux",
        as_class("FluxKontextPipeline"),
        "PN",
        TRUE_CFG | SQUARE | {"image": image(), "max_area": SIZE * SIZE, "_auto_resize": False},
    ),
    "FluxKontextInpaintPipeline": Row(
        "flux",
        as_class("FluxKontextInpaintPipeline"),
        "PN",
        TRUE_CFG | SQUARE | EDIT | {"max_area": SIZE * SIZE, "_auto_resize": False},
    ),
}


def table() -> list[str]:
    """Return the lines of the matrix in docs/steering.md."""
    lines = ["| family | pipeline | rows | text at a denoiser hook point |", "|---|---|---|---|"]
    for name, row in ROWS.items():
        rows = " ".join(row.groups) + (", for each frame" if row.repeats > 1 else "")
        lines.append(f"| {row.family} | {name} | {rows} | {'yes' if row.samples_text else 'refused'} |")
    return lines


def generate(pipe: typing.Any, row: Row, **changed: typing.Any) -> torch.Tensor:
    """Return what a pipeline generates for PROMPTS in two steps."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    torch.manual_seed(0)
    arguments = {"prompt": PROMPTS, "num_inference_steps": 2, "generator": generators} | row.call | changed
    with torch.no_grad():
        output = pipe(**arguments)
    return torch.as_tensor(output.images if hasattr(output, "images") else output.frames)


@contextlib.contextmanager
def conditioning(pipe: typing.Any):
    """Yield a list of the conditioning [rows, T, D] of each pass of the denoiser in the block."""
    model = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    passes: list[torch.Tensor] = []

    def keep(_module, _args, kwargs):
        passes.append(kwargs["encoder_hidden_states"].clone())

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def first_step(passes: list[torch.Tensor], row: Row) -> torch.Tensor:
    """Return the rows of the passes of the first step."""
    rows = len(row.groups) * len(PROMPTS) * row.repeats
    return torch.cat(passes)[:rows]


def steered_rows(row: Row) -> list[bool]:
    """Return for each row of the first step whether it belongs to the prompt."""
    return [group == "P" for group in row.groups for _ in range(len(PROMPTS) * row.repeats)]


@functools.cache
def built(name: str, pipe: typing.Any) -> typing.Any:
    """Return the pipeline of a row, without progress bars."""
    made = ROWS[name].build(pipe)
    made.set_progress_bar_config(disable=True)
    return made
