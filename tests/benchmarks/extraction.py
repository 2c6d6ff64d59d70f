"""Compare the speed of extraction with the forward passes that it needs.

    python tests/benchmarks/extraction.py --json extraction.json
    python tests/benchmarks/extraction.py --json full.json --full --prompts 64 --images 2 --batch 2

Measures the miniature, or with --full Stable Diffusion 1.4's architecture at 512 pixels with random weights. Modes:

    text      prompts through extract.run's loop to a store, against the text encoder alone
    pipeline  the same store, against the whole pipeline with a hook, one prompt at a time, as in the papers; not with
              --full, where it would take hours on a CPU
    noised    images through extract.run's loop to a store, against the VAE and the denoiser alone
    early     the same for the first, middle and last hook point of the denoiser; the ratio is to the last one

Extraction is timed from the loaded model to the finished manifest. The bare passes use the same batches, the model cut
off after the same layer, inputs that are ready, and drop the outputs.

Times are medians of --rounds runs of each, in turn. Rows are {mode, site, bare_s, extract_s, ratio}. ``ratio`` is bare
time over extraction time, at most about 1. In mode ``pipeline``, bare_s is the pipeline's time for --prompts prompts,
and the ratio is how many times faster extraction is.
"""

import argparse
import copy
import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import full_width
import numpy as np
import PIL.Image
import results
import torch

from extract import run, text_encoder
from extract.modes import noised, text
from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import report_errors
from revelio_jax.pipelines import hook_points, hooks, loading, source
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.recorder import record
from revelio_jax.store import StoreWriter, Worker

TIMESTEPS = (25, 200)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", metavar="FILE", help="file to write the rows to")
    parser.add_argument("--full", action="store_true", help="measure the real width and depth, not the miniature")
    parser.add_argument("--prompts", type=int, default=4096, help="number of prompts (default: %(default)s)")
    parser.add_argument("--images", type=int, default=512, help="number of images (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="prompts or images per batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of each mode (default: %(default)s)")
    parser.add_argument(
        "--pipeline-prompts",
        type=int,
        default=8,
        help="prompts timed in mode pipeline; its time is scaled up to --prompts (default: %(default)s)",
    )
    options = parser.parse_args()
    results.check(options.json)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        options.model, options.size = str(full_width.MINIATURE), 32
        if options.full:
            options.model, options.size = str(folder / "model"), full_width.SIZE
            full_width.stable_diffusion().save_pretrained(options.model)
        rows += measure_text(options, folder)
        rows += measure_images(options, folder)
    results.write(options.json, rows)
    for row in rows:
        print(
            f"{row['mode']:9} {row['site']:16} bare {row['bare_s']:8.3f} s  extract {row['extract_s']:8.3f} s"
            f"  ratio {row['ratio']:.2f}"
        )


def config(options: argparse.Namespace, **fields) -> Config:
    extract = ExtractConfig(batch_size=options.batch, height=options.size, width=options.size, **fields)
    return dataclasses.replace(Config(), model=ModelConfig(id=options.model), extract=extract)


def measure_text(options: argparse.Namespace, folder: pathlib.Path) -> list[dict]:
    prompts = [f"a flat emoji of {'red ' * (i % 9)}apple" for i in range(options.prompts)]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    origin = source.find(options.model, "", "sd")
    encoder = loading.load_text_encoder(origin, "text_encoder", "float32")
    pipe = loading.skeleton(origin)
    site = [name for name in hook_points.point_names(pipe) if name.startswith("clip.")][-2]
    text_config = config(options, sites=(site,), positions="all", prompts=str(folder / "prompts.txt"))
    job = text.load(text_config, text.read_inputs(text_config.extract), Worker(), origin)

    cut = copy.deepcopy(encoder.model)
    inner = getattr(cut, "text_model", cut)
    inner.encoder.layers = inner.encoder.layers[: int(site.rpartition(".")[2]) + 1]
    ids = torch.from_numpy(text_encoder.tokenize(encoder, prompts).ids)

    @torch.inference_mode()
    def bare() -> None:
        for batch in ids.split(options.batch):
            cut(batch)

    bare_s, extract_s = in_turn(options.rounds, bare, lambda: extraction(text, job, folder))
    rows = [row("text", site, bare_s, extract_s)]
    if options.full:
        return rows

    whole = loading.load(origin, text_config.model, "float32")
    hooked = hook_points.resolve(whole, site)

    def pipeline() -> None:
        with hooks.capture(hooked):
            for prompt in prompts[: options.pipeline_prompts]:
                whole(prompt, height=options.size, width=options.size, num_inference_steps=50, output_type="np")

    (pipeline_s,) = in_turn(1, pipeline)
    pipeline_s *= options.prompts / options.pipeline_prompts
    return [*rows, {**row("pipeline", site, pipeline_s, extract_s), "ratio": pipeline_s / extract_s}]


def measure_images(options: argparse.Namespace, folder: pathlib.Path) -> list[dict]:
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(options.images):
        pixels = random.integers(0, 256, (options.size, options.size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "images" / f"{i:05}.png")
    names = ("unet.down_blocks.0.attentions.0", "unet.mid_block", "unet.up_blocks.1")
    fields = {"mode": "noised", "images": str(folder / "images"), "timesteps": TIMESTEPS}
    origin = source.find(options.model, "", "sd")
    pipe = loading.load(origin, ModelConfig(id=options.model), "float32")
    configs = {name: config(options, sites=(name,), **fields) for name in names}
    inputs = {name: noised.read_inputs(configs[name].extract) for name in names}
    jobs = {name: noised.load(configs[name], inputs[name], Worker(), origin) for name in names}
    extract, family = configs[names[0]].extract, family_of(pipe)
    with torch.inference_mode():
        conditioning = family.conditioning(pipe, extract.prompt, extract.guidance, (options.size, options.size))
    images = torch.rand(options.images, 3, options.size, options.size) * 2 - 1
    noise = torch.randn(pipe.unet.config.in_channels, *latents_size(pipe, options.size))

    @torch.inference_mode()
    def bare(name: str) -> None:
        site, extract = hook_points.resolve(pipe, name), configs[name].extract
        for batch in images.split(options.batch):
            latents = pipe.vae.encode(batch).latent_dist.mode() + noise
            for timestep in TIMESTEPS:
                with ended_at(pipe, site, timestep, len(batch), extract):
                    pipe.unet(**family.denoiser_arguments(latents, timestep, conditioning))

    middle = names[1]
    times = in_turn(
        options.rounds,
        lambda: bare(middle),
        *(lambda name=name: extraction(noised, jobs[name], folder) for name in names),
    )
    bare_s, extract_s = times[0], dict(zip(names, times[1:], strict=True))
    last = extract_s[names[-1]]
    early = [{**row("early", name, last, extract_s[name]), "ratio": extract_s[name] / last} for name in names]
    return [row("noised", middle, bare_s, extract_s[middle]), *early]


def ended_at(pipe, site: hooks.HookPoint, timestep: int, count: int, extract: ExtractConfig):
    return record(pipe, [site], {0.0: timestep}, count, extract, stop=True)


def latents_size(pipe, size: int) -> tuple[int, int]:
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return size // factor, size // factor


def extraction(mode, job, folder: pathlib.Path) -> None:
    """Run the loop of extract.run into a new store."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        writer = StoreWriter(store, mode.plan(job), mode.samples_table(job))
        run.write_missing_shards(mode, job, writer, Worker())


def in_turn(rounds: int, *runs: Callable[[], None]) -> list[float]:
    """Return the median seconds of each run; the runs take turns, and a first round warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + (rounds > 1)):
        for function, function_seconds in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            function()
            if number or rounds == 1:
                function_seconds.append(time.perf_counter() - started)
    return [statistics.median(run_seconds) for run_seconds in seconds]


def row(mode: str, site: str, bare_s: float, extract_s: float) -> dict:
    return {"mode": mode, "site": site, "bare_s": bare_s, "extract_s": extract_s, "ratio": bare_s / extract_s}


if __name__ == "__main__":
    with report_errors():
        main()
