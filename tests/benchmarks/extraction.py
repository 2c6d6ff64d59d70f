"""How near extraction comes to the forward passes that it cannot do without.

    python tests/benchmarks/extraction.py --json extraction.json
    python tests/benchmarks/extraction.py --json full.json --full --prompts 64 --pictures 2 --batch 2

On the miniature, or with ``--full`` on Stable Diffusion 1.4's architecture at 512 pixels with random weights.
There is no row ``pipeline`` of it, which would take hours on a CPU. ``text`` and ``noised`` take whole
batches of prompts and of pictures through ``extract.run``'s loop to a store in a temporary folder, from
after the model is loaded until the manifest is written. Their bare time is that of the forward passes
alone: the same batches, the encoder cut off after the same layer, or the VAE and a denoiser that ends at the
same site, with inputs that are ready and outputs that nobody keeps. ``ratio`` is bare over extraction, 1
at best. ``pipeline`` is the papers' way: the whole pipeline, one prompt at a time, with a hook on its text
encoder; its ratio is extraction over that, in times faster. ``early`` rows take the first, the middle and the
last site of the denoiser alone; their ratio is to the last.

Times are medians of ``--rounds`` runs of each in turn. Rows: {mode, site, bare_s, extract_s, ratio}, of
``pipeline`` bare_s being seconds of the pipeline for as many prompts.
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
from revelio_jax.errors import reported
from revelio_jax.pipelines import hook_points, loading
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.recorder import recorded
from revelio_jax.pipelines.source import find
from revelio_jax.store import StoreWriter, Worker

TIMESTEPS = (25, 200)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", default="", metavar="FILE", help="where the rows are written")
    parser.add_argument("--full", action="store_true", help="the real width and depth, not the miniature")
    parser.add_argument("--prompts", type=int, default=4096)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pipeline-prompts", type=int, default=8, help="prompts of pipeline, counted up to --prompts")
    given = parser.parse_args()
    path = results.checked(given.json)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        given.model, given.size = str(full_width.MINIATURE), 32
        if given.full:
            given.model, given.size = str(folder / "model"), full_width.SIZE
            full_width.stable_diffusion().save_pretrained(given.model)
        rows += of_text(given, folder)
        rows += of_pictures(given, folder)
    results.write(path, rows)
    for row in rows:
        print(
            f"{row['mode']:9} {row['site']:16} bare {row['bare_s']:8.3f} s  extract {row['extract_s']:8.3f} s"
            f"  ratio {row['ratio']:.2f}"
        )


def config(given: argparse.Namespace, **fields) -> Config:
    extract = ExtractConfig(batch_size=given.batch, height=given.size, width=given.size, **fields)
    return dataclasses.replace(Config(), model=ModelConfig(id=given.model), extract=extract)


def of_text(given: argparse.Namespace, folder: pathlib.Path) -> list[dict]:
    prompts = [f"a flat emoji of {'red ' * (i % 9)}apple" for i in range(given.prompts)]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    source = find(given.model, "", "sd")
    encoder = loading.load_text_encoder(source, "text_encoder", "float32")
    pipe = loading.skeleton(source)
    site = [name for name in hook_points.known_sites(pipe) if name.startswith("clip.")][-2]
    asked = config(given, sites=(site,), positions="all", prompts=str(folder / "prompts.txt"))
    job = text.load(asked, text.read_inputs(asked.extract), Worker())

    cut = copy.deepcopy(encoder.model)
    inner = getattr(cut, "text_model", cut)
    inner.encoder.layers = inner.encoder.layers[: int(site.rpartition(".")[2]) + 1]
    ids = torch.from_numpy(text_encoder.tokenize(encoder, prompts).ids)

    @torch.inference_mode()
    def bare() -> None:
        for batch in ids.split(given.batch):
            cut(batch)

    bare_s, extract_s = in_turn(given.rounds, bare, lambda: extraction(text, job, folder))
    found = [row("text", site, bare_s, extract_s)]
    if given.full:
        return found

    whole = loading.load(source, asked.model, "float32")
    hooked = hook_points.resolve(whole, site)

    def pipeline() -> None:
        with hook_points.captured(hooked):
            for prompt in prompts[: given.pipeline_prompts]:
                whole(prompt, height=given.size, width=given.size, num_inference_steps=50, output_type="np")

    (pipeline_s,) = in_turn(1, pipeline)
    pipeline_s *= given.prompts / given.pipeline_prompts
    return [*found, {**row("pipeline", site, pipeline_s, extract_s), "ratio": pipeline_s / extract_s}]


def of_pictures(given: argparse.Namespace, folder: pathlib.Path) -> list[dict]:
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(given.pictures):
        pixels = random.integers(0, 256, (given.size, given.size, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / "pictures" / f"{i:05}.png")
    names = ("unet.down_blocks.0.attentions.0", "unet.mid_block", "unet.up_blocks.1")
    fields = {"mode": "noised", "images": str(folder / "pictures"), "timesteps": TIMESTEPS}
    source = find(given.model, "", "sd")
    pipe = loading.load(source, ModelConfig(id=given.model), "float32")
    asked = {name: config(given, sites=(name,), **fields) for name in names}
    jobs = {name: noised.load(asked[name], noised.read_inputs(asked[name].extract), Worker()) for name in names}
    family = family_of(pipe)
    with torch.inference_mode():
        conditioning = family.conditioning(pipe, "", 0.0, (given.size, given.size))
    pictures = torch.rand(given.pictures, 3, given.size, given.size) * 2 - 1
    noise = torch.randn(pipe.unet.config.in_channels, *latents_size(pipe, given.size))

    @torch.inference_mode()
    def bare(name: str) -> None:
        site, extract = hook_points.resolve(pipe, name), asked[name].extract
        for batch in pictures.split(given.batch):
            latents = pipe.vae.encode(batch).latent_dist.mode() + noise
            for timestep in TIMESTEPS:
                with ended_at(pipe, site, timestep, len(batch), extract):
                    pipe.unet(**family.denoiser_arguments(latents, timestep, conditioning))

    middle = names[1]
    times = in_turn(
        given.rounds,
        lambda: bare(middle),
        *(lambda name=name: extraction(noised, jobs[name], folder) for name in names),
    )
    bare_s, extract_s = times[0], dict(zip(names, times[1:], strict=True))
    last = extract_s[names[-1]]
    early = [{**row("early", name, last, extract_s[name]), "ratio": extract_s[name] / last} for name in names]
    return [row("noised", middle, bare_s, extract_s[middle]), *early]


def ended_at(pipe, site: hook_points.HookPoint, timestep: int, count: int, extract: ExtractConfig):
    return recorded(pipe, [site], {0.0: timestep}, count, extract, stop=True)


def latents_size(pipe, size: int) -> tuple[int, int]:
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return size // factor, size // factor


def extraction(mode, job, folder: pathlib.Path) -> None:
    """Run the loop of extract.run into a new store."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        writer = StoreWriter(store, mode.plan(job), mode.samples_table(job))
        run.write_missing_shards(mode, job, writer, Worker())


def in_turn(rounds: int, *runs: Callable[[], None]) -> list[float]:
    """Median seconds of each, one round after another, after one that warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + (rounds > 1)):
        for function, times in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            function()
            if number or rounds == 1:
                times.append(time.perf_counter() - started)
    return [statistics.median(of) for of in seconds]


def row(mode: str, site: str, bare_s: float, extract_s: float) -> dict:
    return {"mode": mode, "site": site, "bare_s": bare_s, "extract_s": extract_s, "ratio": bare_s / extract_s}


if __name__ == "__main__":
    with reported():
        main()
