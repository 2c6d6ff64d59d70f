"""Measure the overhead of steering: pairs of images with and without it.

    python tests/benchmarks/steering_overhead.py --json overhead.json
    python tests/benchmarks/steering_overhead.py --json overhead.json --families sd14 --pairs 3 --steps 2

``sd14`` is the architecture of Stable Diffusion 1.4 at its full width with random weights and a batch of 2 in the
denoiser; --size sets the size of its images. ``mini_sd`` and ``mini_flux`` are the miniatures, 32 x 32 pixels. A random
SAE steers the text encoder by --rule. It is four times as wide as the encoder and has 32 active latents per token. The
rule gated is the slowest, since it encodes every prompt. With --denoiser a latent of a block of the denoiser is removed
instead. The checks of every call are part of a steered image. The order alternates: every second pair starts with
steering. A time is that of the whole call, from the prompt to the pixels, without attaching, which happens once. A row
is {family, plain_s, steered_s, ratio}: medians in seconds, and the median of the ratios of pairs.
"""

import argparse
import pathlib
import statistics
import time
import typing

import diffusers
import results
import torch
import transformers

from revelio_jax.errors import InputError, report_errors
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering import Attachment, Steerer
from revelio_jax.steering.sae import Sae

MINIATURES = pathlib.Path(__file__).parents[2] / "extract" / "miniature"
CONCEPT, PROMPT = "glossy 3d", "a glossy 3d emoji of a red apple"
SITES = {"sd14": "clip.layer.9", "mini_sd": "clip.layer.2", "mini_flux": "t5.block.2"}
DENOISER_SITES = {"sd14": "unet.mid_block", "mini_sd": "unet.mid_block", "mini_flux": "flux.double.1.image"}
EXPANSION, K = 4, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="FILE", help="file to write the rows to")
    parser.add_argument("--families", default=",".join(SITES), help="pipelines to measure (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="sampling steps (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of sd14's images in pixels (default: %(default)s)")
    parser.add_argument("--rule", default="gated", help="steering rule (default: %(default)s)")
    parser.add_argument("--denoiser", action="store_true", help="steer the denoiser instead of the text encoder")
    options = parser.parse_args()
    results.check(options.json)
    families = options.families.split(",")
    if unknown := set(families) - set(SITES):
        raise InputError(f"--families has {min(unknown)!r}; it must be one of {', '.join(SITES)}")
    if options.size < 64 or options.size % 64:
        raise InputError(f"--size is {options.size}; it must be a multiple of 64")
    rows = []
    print("family      plain s   steered s   ratio")
    for family in families:
        rows.append(measure(family, options))
        print("{family:<10} {plain_s:>8.3f}  {steered_s:>10.3f}  {ratio:>6.4f}".format(**rows[-1]), flush=True)
        results.write(options.json, {"options": vars(options), "rows": rows})


def measure(family: str, options: argparse.Namespace) -> dict[str, typing.Any]:
    """Return the row of one pipeline."""
    size = options.size if family == "sd14" else 32
    pipe = stable_diffusion_14() if family == "sd14" else miniature(family.removeprefix("mini_"))
    pipe.set_progress_bar_config(disable=True)
    steerer = Steerer(random_sae(pipe, (DENOISER_SITES if options.denoiser else SITES)[family]))

    def attach() -> Attachment:
        return steerer.attach(pipe, {0 if options.denoiser else CONCEPT: -1.0}, rule=options.rule)

    def seconds(steered: bool) -> float:
        attachment = attach() if steered else None
        started = time.perf_counter()
        call(pipe, family, options.steps, size)
        elapsed = time.perf_counter() - started
        if attachment:
            attachment.remove()
        return elapsed

    attach().remove()  # encodes the concept
    call(pipe, family, 1, size)
    times = []
    for pair in range(options.pairs):
        first = seconds(steered=bool(pair % 2))
        second = seconds(steered=not pair % 2)
        times.append((second, first) if pair % 2 else (first, second))
    plain, steered = zip(*times, strict=True)
    return {
        "family": family,
        "plain_s": statistics.median(plain),
        "steered_s": statistics.median(steered),
        "ratio": statistics.median(s / p for p, s in times),
    }


def call(pipe: typing.Any, family: str, steps: int, size: int) -> None:
    arguments = {"height": size, "width": size, "num_inference_steps": steps, "output_type": "np"}
    if family == "mini_flux":
        arguments |= {"true_cfg_scale": 3.0, "negative_prompt": "", "max_sequence_length": 20}
    pipe(PROMPT, generator=torch.Generator().manual_seed(0), **arguments)


def random_sae(pipe: typing.Any, site: str) -> Sae:
    d = hook_points.resolve(pipe, site).d
    W_dec_FD = torch.nn.functional.normalize(torch.randn(EXPANSION * d, d), dim=1)
    metadata = {"site": site, "family": family_of(pipe).name}
    return Sae(W_dec_FD.T.contiguous(), torch.zeros(EXPANSION * d), W_dec_FD, torch.zeros(d), K, metadata)


def miniature(name: str) -> typing.Any:
    return diffusers.DiffusionPipeline.from_pretrained(MINIATURES / name, dtype=torch.float32)


def stable_diffusion_14() -> diffusers.StableDiffusionPipeline:
    """Return CompVis/stable-diffusion-v1-4 with random weights and the miniature's tokenizer."""
    torch.manual_seed(0)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(MINIATURES / "sd" / "tokenizer")
    tokenizer.model_max_length = 77
    text_encoder = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=49_408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=768,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        skip_prk_steps=True,
        set_alpha_to_one=False,
    )
    parts = {"text_encoder": text_encoder.eval(), "unet": unet.eval(), "vae": vae.eval()}
    return diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


if __name__ == "__main__":
    with report_errors():
        main()
