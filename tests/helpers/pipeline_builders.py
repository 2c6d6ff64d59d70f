"""Build tiny pipelines of other tasks from the components of a text-to-image pipeline."""

import typing

import diffusers
import torch

SIZE = 8  # pixels and latents


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
