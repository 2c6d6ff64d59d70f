"""Train a miniature pipeline from scratch: data, tokenizers, autoencoder, judge, denoiser, measurements.

    python -m extract.miniature.train
    python -m extract.miniature.train --pipeline flux

On two cores, Stable Diffusion takes about 90 minutes and FLUX about 50. Both have the same autoencoder and judge.
Every stage saves its result in the work folder and is skipped if the result exists. A stopped run therefore resumes,
and the second pipeline takes less time. --fresh starts over.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable

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
    """Training steps of each stage."""

    vae: int = 3400
    judge: int = 2400
    denoiser: int = 7000  # of Stable Diffusion
    encoders: int = 1500  # of FLUX
    transformer: int = 6000  # of FLUX


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training data: ``images`` [N, 3, 32, 32] of ``emojis``, and every caption with its labels."""

    images: torch.Tensor
    emojis: list[data.Emoji]
    captions: list[dict[str, str]]

    @property
    def prompts(self) -> list[str]:
        """Return the captions without their labels."""
        return [caption["prompt"] for caption in self.captions]


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of a training run; results are folders in ``work``, and complete stages are skipped."""

    work: pathlib.Path
    workers: int
    steps: Steps

    def run(self, name: str, function: Callable[[pathlib.Path], object]) -> pathlib.Path:
        """Call ``function`` with the folder of the stage, unless the stage is complete; return the folder."""
        folder = self.work / name
        if not (folder / "seconds").exists():
            print(f"{name}: to {folder}", flush=True)
            started = time.perf_counter()
            function(folder)
            (folder / "seconds").write_text(f"{time.perf_counter() - started:.0f}")
        return folder

    def train(self, name: str, function: Callable[..., None], *arguments: object) -> pathlib.Path:
        """Run a training stage in parallel processes; return its folder."""
        return self.run(name, lambda folder: data_parallel.run(function, self.workers, *arguments, folder))


def train_stable_diffusion(
    stages: Stages, training: TrainingData, latents: torch.Tensor, emojis: list[data.Emoji], vae_folder: pathlib.Path
) -> pathlib.Path:
    """Train the text encoder and U-Net on ``latents`` of ``emojis``; return the folder of the pipeline."""
    tokenizer_folder = stages.run("tokenizer", lambda to: tokenizer.fit(training.prompts).save_pretrained(to))
    steps = stages.steps.denoiser
    return stages.train("denoiser", denoiser.train, latents, emojis, steps, vae_folder, tokenizer_folder)


def train_flux(
    stages: Stages, training: TrainingData, latents: torch.Tensor, emojis: list[data.Emoji], vae_folder: pathlib.Path
) -> pathlib.Path:
    """Train both text encoders, then the transformer, on ``latents`` of ``emojis``; return the pipeline's folder."""
    tokenizer_folder = stages.run("tokenizer", lambda to: tokenizer.fit(training.prompts).save_pretrained(to))
    tokenizer_2_folder = stages.run("tokenizer_2", lambda to: tokenizer.fit_words(training.prompts).save_pretrained(to))
    encoders_folder = stages.train(
        "encoders", encoders.train, latents, emojis, stages.steps.encoders, tokenizer_folder, tokenizer_2_folder
    )
    steps = stages.steps.transformer
    return stages.train("transformer", flow.train, latents, emojis, steps, vae_folder, encoders_folder)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The training function of a miniature, the stages to report, and whether its folder contains the shared judge."""

    train: Callable[..., pathlib.Path]
    stages: tuple[str, ...]
    has_judge: bool


RECIPES = {
    "sd": Recipe(train_stable_diffusion, ("vae", "denoiser", "judge"), has_judge=True),
    "flux": Recipe(train_flux, ("vae", "encoders", "transformer", "judge"), has_judge=False),
}


def main() -> None:
    """Run ``python -m extract.miniature.train``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", choices=tuple(RECIPES), default="sd", help="pipeline to train (default: sd)")
    parser.add_argument(
        "--work", type=pathlib.Path, default=pathlib.Path(".cache/miniature"), help="folder of the stages' results"
    )
    parser.add_argument("--out", type=pathlib.Path, help="folder to write (default: the folder in the package)")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one per core)"
    )
    parser.add_argument("--fresh", action="store_true", help="delete the work folder first")
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.work, ignore_errors=True)
    make(args.pipeline, args.out or HERE / args.pipeline, Stages(args.work, args.workers, Steps()))


def make(pipeline: str, out: pathlib.Path, stages: Stages) -> None:
    """Run every stage that is not complete and write the pipeline folder ``out``, with its measurements and card."""
    recipe = RECIPES[pipeline]
    stages.work.mkdir(parents=True, exist_ok=True)
    print("data", flush=True)
    pixels, emojis = data.load(stages.work / "npm")
    training = TrainingData(vae.to_tensor(pixels).share_memory_(), emojis, data.all_captions(emojis))
    vae_folder = stages.train("vae", vae.train, training.images, stages.steps.vae)
    judge_folder = stages.train("judge", judge.train, training.images, emojis, stages.steps.judge, vae_folder)

    autoencoder = AutoencoderKL.from_pretrained(vae_folder).eval()
    trained = [i for i, emoji in enumerate(emojis) if emoji.category and not emoji.held_out]
    latents = vae.encode(autoencoder, training.images[trained]).share_memory_()
    pipe_folder = recipe.train(stages, training, latents, [emojis[i] for i in trained], vae_folder)

    print(f"writing {out}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(pipe_folder)
    pipe.to(torch.float16).save_pretrained(out)
    remove_origin(out)
    support_transformers_4(out)
    if recipe.has_judge:
        shutil.copy(judge_folder / judge.WEIGHTS, out)
    held_out = {(emoji.name, emoji.style) for emoji in emojis if emoji.held_out}
    rows = [{**row, "held_out": int((row["name"], row["style"]) in held_out)} for row in training.captions]
    pyarrow.csv.write_csv(pyarrow.Table.from_pylist(rows), out / "prompts.csv")

    # Measure the fp16 weights that ship, read back from the folder.
    measured = measure.measure(out, judge_folder, emojis, training.images)
    measured |= {
        "seconds": {name: int((stages.work / name / "seconds").read_text()) for name in recipe.stages},
        "workers": stages.workers,
        "steps": {name: getattr(stages.steps, name) for name in recipe.stages},
    }
    (out / "measured.json").write_text(json.dumps(measured, indent=2) + "\n")
    (out / "README.md").write_text(card.render(measured, emojis, pipeline))
    print(json.dumps(measured, indent=2))


def remove_origin(folder: pathlib.Path) -> None:
    """Remove the folder that each component was loaded from, which diffusers writes into its config."""
    for path in (folder / "model_index.json", *folder.glob("*/config.json")):
        config = json.loads(path.read_text())
        config.pop("_name_or_path", None)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def support_transformers_4(folder: pathlib.Path) -> None:
    """Rewrite the files of T5's tokenizer that transformers 5 writes and transformers 4 cannot read."""
    path = folder / "model_index.json"
    index = path.read_text()
    path.write_text(index.replace('"T5Tokenizer"', '"T5TokenizerFast"'))  # one class in 5, two classes in 4
    for path in folder.glob("tokenizer*/tokenizer_config.json"):
        config = json.loads(path.read_text())
        if config.get("extra_special_tokens") == []:  # 4 requires a dict
            del config["extra_special_tokens"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
