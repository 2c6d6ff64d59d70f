"""Learn a concept: find the latents that fire on labeled prompts with the concept and rarely on prompts without it.

    revelio learn --config mini_sd --concept "style=glossy 3d"

A latent fires on a share of the prompts with the concept, and on a share of the other prompts. It belongs to the
concept if the first share is at least --ratio times the second. At a hook point of the denoiser, the command samples
images of the prompts and uses shares of positions instead. It writes runs/<name>/steering/<concept>.safetensors, which
the rules ``gated``, ``swap`` and ``transport`` read. At a text encoder, it also learns how prompts with the concept
differ from matched prompts without it, for the rule ``transport``.
"""

import dataclasses
import functools
import pathlib
import random
import sys
import typing
from collections.abc import Callable, Sequence

import torch
import tqdm

from revelio_jax import files
from revelio_jax.cli import parse
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.inputs import prompt_settings
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import MEMORY_ADVICE, call_settings
from revelio_jax.steering.concept import GATE, hidden_states, presence
from revelio_jax.steering.labels import LabeledPrompt, parse_concept, read_labeled
from revelio_jax.steering.learned_concepts import LearnedConcept, file_name, save_learned
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.sampled_concepts import CallArguments, sample_prompts
from revelio_jax.steering.steerer import Steerer
from revelio_jax.steering.transport_learning import learn_transport

RATIO, MOST, IMAGES = 4.0, 24, 64
FLAGS = {
    "concept": ("", "label column and value, for example 'style=glossy 3d'"),
    "ratio": (
        RATIO,
        "smallest ratio of a latent's share of prompts with the concept to its share of prompts without it",
    ),
    "most": (MOST, "largest number of latents"),
    "images": (IMAGES, "denoiser only: number of sampled images with the concept, and of images without it"),
}


def find_latents(
    pipe: typing.Any,
    site: str,
    sae: Sae,
    with_concept: list[str],
    without: list[str],
    ratio: float,
    most: int,
    sampling: CallArguments | None = None,
) -> tuple[LearnedConcept, list[dict[str, float]]]:
    """Learn a concept from prompts with it and prompts without it; return it and a description of its latents.

    A latent fires on a prompt if it is among the top-k of any position. In a denoiser, each position of each step
    counts separately. The description has rows {latent, share_with, share_without, mean_with}, sorted by
    mean_with x (share_with - share_without). ``mean_with`` is the mean over prompts of a latent's largest value; in a
    denoiser it is the mean over positions.
    """
    codes_of = functools.partial(_iterate_codes, pipe, site, sae, sampling=sampling)
    with_share, with_mean, with_code_TF = _firing(codes_of, with_concept, hook_points.is_denoiser_point(site))
    without_share, _, without_code_TF = _firing(codes_of, without, hook_points.is_denoiser_point(site))
    belongs = (with_share >= ratio * without_share) & (with_share > 0)
    score = torch.where(belongs, with_mean * (with_share - without_share), -1.0)
    latents = score.argsort(descending=True)[:most]
    latents = latents[score[latents] > 0]
    presences: list[torch.Tensor] = []
    codes_of(with_concept[:1024], lambda codes_BTF: presences.append(presence(codes_BTF, latents)))
    threshold = GATE * float(torch.cat(presences).median())
    rows = [
        {
            "latent": int(i),
            "share_with": round(float(with_share[i]), 4),
            "share_without": round(float(without_share[i]), 4),
            "mean_with": float(with_mean[i]),
        }
        for i in latents
    ]
    return LearnedConcept(latents, with_code_TF - without_code_TF, threshold), rows


def _firing(
    codes_of: Callable[[list[str], Callable[[torch.Tensor], typing.Any]], None], prompts: list[str], each_position: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the share of prompts on which each latent fires [F], its mean peak [F] and the mean code [T, F].

    With ``each_position``, shares and means are over positions instead of prompts, and the code is [1, F].
    """
    fired: typing.Any = 0
    peaks: typing.Any = 0
    codes_TF: typing.Any = 0
    count = 0

    def add(codes_BTF: torch.Tensor) -> None:
        nonlocal fired, peaks, codes_TF, count
        if each_position:
            codes_BTF = codes_BTF.flatten(0, 1)[:, None]
        peak_BF = codes_BTF.amax(1)
        fired, peaks = fired + (peak_BF > 0).sum(0), peaks + peak_BF.sum(0)
        codes_TF, count = codes_TF + codes_BTF.sum(0), count + len(codes_BTF)

    codes_of(prompts, add)
    return fired / count, peaks / count, codes_TF / count


def _iterate_codes(
    pipe: typing.Any,
    site: str,
    sae: Sae,
    prompts: list[str],
    on_codes: Callable[[torch.Tensor], typing.Any],
    sampling: CallArguments | None,
) -> None:
    """Call ``on_codes`` with the codes [B, T, F] of each batch of prompts, in a denoiser of each step."""
    if hook_points.is_denoiser_point(site):
        sample_prompts(
            pipe,
            site,
            prompts,
            lambda x_BTD: on_codes(sae.codes(x_BTD)),
            sampling,
            difference=sae.reads_difference,
        )
        return
    for start in tqdm.trange(0, len(prompts), 256, desc="latents", leave=False):
        on_codes(sae.codes(hidden_states(pipe, site, prompts[start : start + 256])))


def split(labeled: list[LabeledPrompt], column: str, value: str) -> tuple[list[str], list[str]]:
    """Return the prompts with the concept, and the prompts with another value of its label."""
    with_concept = [row["prompt"] for row in labeled if row[column] == value]
    return with_concept, [row["prompt"] for row in labeled if row[column] not in (value, "")]


def at_most(prompts: list[str], most: int) -> list[str]:
    """Return at most ``most`` of the prompts, drawn at random with a fixed seed."""
    return random.Random(0).sample(prompts, min(len(prompts), most))


@memory_advice(MEMORY_ADVICE)
def main(argv: Sequence[str]) -> None:
    """Run the command with its arguments. Raise InputError on a wrong argument or file."""
    config, flags = parse(["revelio_jax.steering.latents", *argv], __doc__, **FLAGS)
    if not config.run:
        raise InputError("config.run is not set; it must be the folder of a run, for example runs/mini_sd")
    files.check_writable(config.run, "config.run")
    labeled = read_labeled(config.steer.prompts)
    column, value = parse_concept(flags["concept"], labeled)
    steerer = Steerer.from_pretrained(pathlib.Path(config.run, "export"))
    pipe = load_pipeline(config.model)
    with_concept, without = split(labeled, column, value)
    sae, sampling = steerer.sae_for(pipe), None
    if hook_points.is_denoiser_point(steerer.site):
        with_concept, without = at_most(with_concept, flags["images"]), at_most(without, flags["images"])
        if columns := prompt_settings.used_columns(config.steer):
            print(f"prompts: {', '.join(sorted(columns))} not used: learning samples all images with the same settings")
        sampling = call_settings(pipe, config.steer)
    learned, rows = find_latents(
        pipe, steerer.site, sae, with_concept, without, flags["ratio"], flags["most"], sampling
    )
    if not hook_points.is_denoiser_point(steerer.site):
        transport = learn_transport(pipe, steerer.site, sae, labeled, column, value)
        learned = dataclasses.replace(learned, transport=transport)
    folder = pathlib.Path(config.run, "steering")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{file_name(value)}.safetensors"
    save_learned(file, value, learned)
    for row in rows:
        print(
            "latent {latent:6d}  fires on {share_with:.3f} of the prompts with the concept, "
            "{share_without:.3f} of the others".format(**row)
        )
    print(f"{len(rows)} latents of {value!r}: {file}")


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
