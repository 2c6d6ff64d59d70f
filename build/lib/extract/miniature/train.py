"""Make a miniature again from nothing: data, tokenizers, autoencoder, judge, denoiser, figures.

    python -m extract.miniature.train
    python -m extract.miniature.train --pipeline flux

Stable Diffusion takes about 90 minutes on two cores, FLUX about 50. Both have the same autoencoder
and judge. Every stage keeps its result in the work folder and is skipped when that is there, so a
stopped run goes on, and the second pipeline takes less; --fresh starts over.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import time

import pyarrow
import pyarrow.csv
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from extract.miniature import (
    card,
    data,
    data_parallel,
    denoiser,
    encoders,
    flow,
    judge,
    measure,
    tokenizer,
    vae,
)

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Steps:
    vae: int = 3400
    judge: int = 2400
    denoiser: int = 7000  # of Stable Diffusion
    encoders: int = 1500  # of FLUX
    transformer: int = 6000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=("sd", "flux"), default="sd")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".cache/miniature"))
    parser.add_argument("--out", type=pathlib.Path, help="default: the folder that ships")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="forget what the work folder holds")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    make(args.pipeline, args.work, args.out or HERE / args.pipeline, args.workers, Steps())


def make(pipeline: str, work: pathlib.Path, out: pathlib.Path, n_workers: int, steps: Steps) -> None:
    """Run every stage that ``work`` does not hold yet and write the pipeline folder ``out``."""
    work.mkdir(parents=True, exist_ok=True)
    print("data", flush=True)
    pixels, pictures = data.load(work / "npm")
    images = vae.to_tensor(pixels).share_memory_()
    captions = data.all_captions(pictures)

    def stage(name: str, function, *arguments) -> pathlib.Path:
        folder = work / name
        if not (folder / "seconds").exists():
            print(f"{name}: to {folder}", flush=True)
            started = time.perf_counter()
            function(*arguments, folder)
            (folder / "seconds").write_text(f"{time.perf_counter() - started:.0f}")
        return folder

    prompts = [row["prompt"] for row in captions]
    tokenizer_folder = stage("tokenizer", lambda to: tokenizer.fit(prompts).save_pretrained(to))
    vae_folder = stage("vae", data_parallel.run, vae.train, n_workers, images, steps.vae)
    judge_folder = stage("judge", data_parallel.run, judge.train, n_workers, images, pictures, steps.judge, vae_folder)

    autoencoder = AutoencoderKL.from_pretrained(vae_folder).eval()
    trained = [i for i, picture in enumerate(pictures) if picture.category and not picture.held_out]
    latents = vae.encode(autoencoder, images[trained]).share_memory_()
    shown = [pictures[i] for i in trained]
    if pipeline == "sd":
        stages = ("vae", "denoiser", "judge")
        pipe_folder = stage(
            "denoiser", data_parallel.run, denoiser.train, n_workers, latents, shown, steps.denoiser,
            vae_folder, tokenizer_folder,
        )  # fmt: skip
    else:
        stages = ("vae", "encoders", "transformer", "judge")
        tokenizer_2_folder = stage("tokenizer_2", lambda to: tokenizer.fit_words(prompts).save_pretrained(to))
        encoders_folder = stage(
            "encoders", data_parallel.run, encoders.train, n_workers, latents, shown, steps.encoders,
            tokenizer_folder, tokenizer_2_folder,
        )  # fmt: skip
        pipe_folder = stage(
            "transformer", data_parallel.run, flow.train, n_workers, latents, shown, steps.transformer,
            vae_folder, encoders_folder,
        )  # fmt: skip

    print(f"writing {out}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(pipe_folder)
    pipe.to(torch.float16).save_pretrained(out)
    forget_where(out)
    for_any_transformers(out)
    if pipeline == "sd":  # where the other miniature's judge is too
        shutil.copy(judge_folder / judge.WEIGHTS, out)
    held_out = {(p.name, p.style) for p in pictures if p.held_out}
    rows = [{**row, "held_out": int((row["name"], row["style"]) in held_out)} for row in captions]
    pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), out / "prompts.csv")

    seconds = {name: int((work / name / "seconds").read_text()) for name in stages}
    # What ships is measured: the fp16 weights, read back.
    measured = measure.measure(out, judge_folder, pictures, images)
    measured |= {
        "seconds": seconds,
        "workers": n_workers,
        "steps": {name: getattr(steps, name) for name in stages},
    }
    (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (out / "README.md").write_text(card.render(measured, pictures, pipeline))
    print(json.dumps(measured, indent=2))


def forget_where(folder: pathlib.Path) -> None:
    """Drop the folder that a part was loaded from, which diffusers writes into its config."""
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def for_any_transformers(folder: pathlib.Path) -> None:
    """Undo what transformers 5 writes and 4 does not read, of T5's tokenizer."""
    path = folder / "model_index.json"
    index = path.read_text()
    path.write_text(index.replace('"T5Tokenizer"', '"T5TokenizerFast"'))  # one class in 5, two in 4
    for path in folder.glob("tokenizer*/tokenizer_config.json"):
        config = json.loads(path.read_text())
        if config.get("extra_special_tokens") == []:  # 4 wants a dict
            del config["extra_special_tokens"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
