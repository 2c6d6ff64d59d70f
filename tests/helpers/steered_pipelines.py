"""Tiny pipelines of every task, with the calls that tests and the matrix in docs/steering.md make of them.

``groups`` of a row has one letter for each group of rows that the first step passes to the denoiser, in order: P for
the prompt and N for the negative prompt.
"""

import contextlib
import dataclasses
import functools
import typing

import diffusers
import torch

PROMPTS = ["a flat emoji of cat", "a glossy 3d emoji of red apple"]
NEGATIVE = ["red", "flat cat"]
TEXT_POINT = {"sd": "clip.layer.1", "sdxl": "clip_l.layer.1", "flux": "t5.block.1"}
DENOISER_POINT = {
    "sd": "unet.mid_block",
    "sdxl": "unet.down_blocks.1.attentions.0",
    "flux": "flux.double.0.image",
}
SIZE = 8  # pixels and latents


@dataclasses.dataclass(frozen=True)
class Row:
    """One pipeline of the matrix: how it is built from the text-to-image pipeline of its family, and called."""

    family: str
    build: typing.Callable[[typing.Any], typing.Any]
    groups: str
    call: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    repeats: int = 1  # rows of the denoiser for each prompt: frames of a video
    samples_text: bool = True  # whether its components can sample images of a text alone


def image(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def mask(count: int = 2) -> torch.Tensor:
    area = torch.zeros(count, 1, SIZE, SIZE)
    area[..., : SIZE // 2] = 1
    return area


def denoiser(model: torch.nn.Module, **changed: typing.Any) -> torch.nn.Module:
    """Return a denoiser like ``model`` with some fields of its config changed and random weights."""
    torch.manual_seed(1)
    config = {name: value for name, value in model.config.items() if name != "_use_default_values"}
    return type(model).from_config(config | changed).eval()


def as_class(name: str, swap: typing.Callable[[typing.Any], dict] | None = None, **options: typing.Any):
    """Return a function that builds the pipeline ``name`` from the components of another pipeline."""

    def build(pipe: typing.Any) -> typing.Any:
        cls = getattr(diffusers, name)
        parts = dict(pipe.components) | (swap(pipe) if swap else {})
        accepted = set(cls._get_signature_types())
        parts = {part: value for part, value in parts.items() if part in accepted}
        if "requires_safety_checker" in accepted:
            parts["requires_safety_checker"] = False
        return cls(**parts, **options)

    return build


def unet(**changed: typing.Any):
    return lambda pipe: {"unet": denoiser(pipe.unet, **changed)}


def with_own_unet(parts: typing.Callable[[typing.Any], dict]) -> typing.Callable[[typing.Any], dict]:
    """Return a function that adds a U-Net of its own to ``parts``. PAG changes the attention of its U-Net for good."""
    return lambda pipe: parts(pipe) | unet()(pipe)


def transformer(**changed: typing.Any):
    return lambda pipe: {"transformer": denoiser(pipe.transformer, **changed)}


def controlnet(pipe: typing.Any) -> dict[str, typing.Any]:
    torch.manual_seed(1)
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_channels=3)
    for parameter in net.parameters():  # those of the zero convolutions, too
        torch.nn.init.normal_(parameter, std=0.1)
    return {"controlnet": net.eval()}


def flux_controlnet(pipe: typing.Any) -> dict[str, typing.Any]:
    torch.manual_seed(1)
    return {
        "controlnet": diffusers.FluxControlNetModel.from_transformer(
            pipe.transformer, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2
        ).eval()
    }


def lcm(pipe: typing.Any) -> dict[str, typing.Any]:
    scheduler = diffusers.LCMScheduler(original_inference_steps=50)
    return {"unet": denoiser(pipe.unet, time_cond_proj_dim=8), "scheduler": scheduler}


def motion(pipe: typing.Any) -> dict[str, typing.Any]:
    torch.manual_seed(1)
    adapter = diffusers.MotionAdapter(
        block_out_channels=tuple(pipe.unet.config.block_out_channels),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
    )
    return {"motion_adapter": adapter}


def with_ip_adapter(pipe: typing.Any) -> typing.Any:
    """Return the pipeline with an IP-Adapter of random weights, for embeddings of width 8."""
    made = as_class(type(pipe).__name__, unet())(pipe)
    width = made.unet.config.cross_attention_dim
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    image_projection = {
        "proj.weight": random(4 * width, 8),
        "proj.bias": random(4 * width),
        "norm.weight": random(width),
        "norm.bias": random(width),
    }
    adapter: dict[str, torch.Tensor] = {}
    number = 1
    for name in made.unet.attn_processors:
        if not name.endswith("attn1.processor") and "motion_modules" not in name:
            inner = made.unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for key in ("to_k_ip.weight", "to_v_ip.weight"):
                adapter[f"{number}.{key}"] = random(inner, width)
        number += 2
    keys = sorted({int(key.partition(".")[0]) for key in adapter})
    renamed = {f"{2 * keys.index(int(k.partition('.')[0])) + 1}.{k.partition('.')[2]}": v for k, v in adapter.items()}
    made.unet._load_ip_adapter_weights([{"image_proj": image_projection, "ip_adapter": renamed}])
    return made


class OwnEncoding(diffusers.StableDiffusionPipeline):
    """Encodes its prompts itself, as the community's long-prompt pipelines do, and passes on the embeddings."""

    @torch.no_grad()
    def __call__(self, prompt, negative_prompt="", **options):
        def embeddings(texts):
            ids = self.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
            return self.text_encoder(ids)[0]

        negative = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt] * len(prompt)
        return super().__call__(
            prompt_embeds=embeddings(prompt), negative_prompt_embeds=embeddings(negative), **options
        )


class Styled(diffusers.StableDiffusionPipeline):
    """Changes the prompt before it is encoded."""

    def encode_prompt(self, prompt, *args, **kwargs):
        return super().encode_prompt([f"a flat {text}" for text in prompt], *args, **kwargs)


def own(cls: type) -> typing.Callable[[typing.Any], typing.Any]:
    return lambda pipe: cls(**pipe.components, requires_safety_checker=False)


def from_pipe(name: str) -> typing.Callable[[typing.Any], typing.Any]:
    return lambda pipe: getattr(diffusers, name).from_pipe(pipe)


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
