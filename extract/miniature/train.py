"""Make the miniature again from nothing: data, tokenizer, autoencoder, denoiser, judge, figures.

    python -m extract.miniature.train

Takes about 90 minutes on two cores. Every stage keeps its result in the work folder and is skipped
when that is there, so a stopped run goes on; --fresh starts over.
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
from diffusers import AutoencoderKL, StableDiffusionPipeline

from extract.miniature import card, data, denoiser, judge, measure, tokenizer, vae, workers

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Steps:
    vae: int = 3400
    denoiser: int = 7000
    judge: int = 2400


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".cache/miniature"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "sd")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--fresh", action="store_true", help="forget what the work folder holds")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    make(args.work, args.out, args.workers, Steps())


def make(work: pathlib.Path, out: pathlib.Path, n_workers: int, steps: Steps) -> None:
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

    tokenizer_folder = stage(
        "tokenizer", lambda to: tokenizer.fit([row["prompt"] for row in captions]).save_pretrained(to)
    )
    vae_folder = stage("vae", workers.run, vae.train, n_workers, images, steps.vae)
    autoencoder = AutoencoderKL.from_pretrained(vae_folder).eval()

    named = [i for i, picture in enumerate(pictures) if picture.category]
    trained = [i for i in named if not pictures[i].held_out]
    latents = vae.encode(autoencoder, images[trained]).share_memory_()
    pipe_folder = stage(
        "denoiser", workers.run, denoiser.train, n_workers, latents,
        [pictures[i] for i in trained], steps.denoiser, vae_folder, tokenizer_folder,
    )  # fmt: skip
    judge_folder = stage(
        "judge", workers.run, judge.train, n_workers, images, pictures, steps.judge, vae_folder
    )

    print(f"writing {out}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pipe = StableDiffusionPipeline.from_pretrained(pipe_folder)
    pipe.to(torch.float16).save_pretrained(out)
    forget_where(out)
    shutil.copy(judge_folder / judge.WEIGHTS, out)
    held_out = {(p.name, p.style) for p in pictures if p.held_out}
    rows = [{**row, "held_out": int((row["name"], row["style"]) in held_out)} for row in captions]
    pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), out / "prompts.csv")

    seconds = {name: int((work / name / "seconds").read_text()) for name in ("vae", "denoiser", "judge")}
    # What ships is measured: the fp16 weights, read back.
    measured = measure.measure(out, pictures, images)
    measured |= {"seconds": seconds, "workers": n_workers, "steps": dataclasses.asdict(steps)}
    (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (out / "README.md").write_text(card.render(measured, pictures))
    print(json.dumps(measured, indent=2))


def forget_where(folder: pathlib.Path) -> None:
    """Drop the folder that a part was loaded from, which diffusers writes into its config."""
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
