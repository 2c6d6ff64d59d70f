"""Which latents belong to a concept, found from labelled prompts.

    python -m revelio_jax.steering.latents --config configs/mini_sd.py --concept "style=glossy 3d"

A latent belongs to a concept when it fires on a larger share of the prompts that hold it than of
those that do not, --ratio times as large at least. At a site of the denoiser pictures of the prompts are
sampled, and it is the share of positions that counts. Writes runs/<name>/steering/<concept>.safetensors,
which the rules ``gated`` and ``swap`` read from then on.
"""

import functools
import pathlib
import random
import sys
import typing
from collections.abc import Sequence

import torch
import tqdm

from revelio_jax.cli import parse
from revelio_jax.errors import InputError, reported
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sampling_of
from revelio_jax.pipelines.whole import load_pipeline
from revelio_jax.steering.concept import GATE, hidden_states, presence
from revelio_jax.steering.labels import Labelled, parse_concept, read_labelled
from revelio_jax.steering.learned_concepts import Learned, file_name, save_learned
from revelio_jax.steering.sae import Sae
from revelio_jax.steering.sampled_concepts import Sampling, sample_prompts
from revelio_jax.steering.steerer import Steerer

FLAGS = {
    "concept": ("", "label column and value, such as style=glossy 3d"),
    "ratio": ("4", "least ratio of the shares of prompts on which a latent fires"),
    "most": (24, "latents to keep at most"),
    "pictures": (64, "sites of the denoiser: pictures with the concept, and as many without"),
}


def find_latents(
    pipe: typing.Any,
    site: str,
    sae: Sae,
    with_concept: list[str],
    without: list[str],
    ratio: float,
    most: int,
    sampling: Sampling | None = None,
) -> tuple[Learned, list[dict[str, float]]]:
    """What prompts with and without a concept say of it, and its latents for a reader.

    A latent fires on a prompt when it is among the k of any of its positions; in a denoiser each
    position of each step counts by itself. Rows are {latent, share_with, share_without, mean_with},
    strongest difference first; ``mean_with`` is the mean peak, in a denoiser the mean.
    """
    codes_of = functools.partial(_each_codes, pipe, site, sae, sampling=sampling)
    with_share, with_mean, with_code_TF = _firing(codes_of, with_concept, hook_points.is_denoiser_site(site))
    without_share, _, without_code_TF = _firing(codes_of, without, hook_points.is_denoiser_site(site))
    belongs = (with_share >= ratio * without_share) & (with_share > 0)
    score = torch.where(belongs, with_mean * (with_share - without_share), -1.0)
    latents = score.argsort(descending=True)[:most]
    latents = latents[score[latents] > 0]
    held: list[torch.Tensor] = []
    codes_of(with_concept[:1024], lambda codes_BTF: held.append(presence(codes_BTF, latents)))
    threshold = GATE * float(torch.cat(held).median())
    rows = [
        {
            "latent": int(i),
            "share_with": round(float(with_share[i]), 4),
            "share_without": round(float(without_share[i]), 4),
            "mean_with": float(with_mean[i]),
        }
        for i in latents
    ]
    return Learned(latents, with_code_TF - without_code_TF, threshold), rows


def _firing(
    codes_of: typing.Callable, prompts: list[str], each_position: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Share of the prompts on which each latent fires [F], its mean peak [F], the mean code [T, F].

    Where ``each_position`` they are of positions, and the code is [1, F].
    """
    fired, peaks, codes_TF, count = 0, 0, 0, 0

    def add(codes_BTF: torch.Tensor) -> None:
        nonlocal fired, peaks, codes_TF, count
        if each_position:
            codes_BTF = codes_BTF.flatten(0, 1)[:, None]
        peak_BF = codes_BTF.amax(1)
        fired, peaks = fired + (peak_BF > 0).sum(0), peaks + peak_BF.sum(0)
        codes_TF, count = codes_TF + codes_BTF.sum(0), count + len(codes_BTF)

    codes_of(prompts, add)
    return fired / count, peaks / count, codes_TF / count


def _each_codes(
    pipe: typing.Any,
    site: str,
    sae: Sae,
    prompts: list[str],
    see: typing.Callable[[torch.Tensor], typing.Any],
    sampling: Sampling | None,
) -> None:
    """Show ``see`` the codes [B, T, F] of the prompts; in a denoiser those of each step that samples them."""
    if hook_points.is_denoiser_site(site):
        difference = sae.metadata.get("value") == "difference"
        sample_prompts(pipe, site, prompts, lambda x_BTD: see(sae.codes(x_BTD)), sampling, difference)
        return
    for start in tqdm.trange(0, len(prompts), 256, desc="latents", leave=False):
        see(sae.codes(hidden_states(pipe, site, prompts[start : start + 256])))


def split(labelled: list[Labelled], column: str, value: str) -> tuple[list[str], list[str]]:
    """Prompts that hold the concept, and prompts that say another value of its label."""
    with_concept = [row["prompt"] for row in labelled if row[column] == value]
    return with_concept, [row["prompt"] for row in labelled if row[column] not in (value, "")]


def few(prompts: list[str], most: int) -> list[str]:
    """``most`` of the prompts at most, drawn at random but always the same."""
    return random.Random(0).sample(prompts, min(len(prompts), most))


def main(argv: Sequence[str]) -> None:
    config, flags = parse(["revelio_jax.steering.latents", *argv], __doc__, **FLAGS)
    try:
        ratio = float(flags["ratio"])
    except ValueError:
        raise InputError(f"--ratio is {flags['ratio']!r}; it must be a number") from None
    labelled = read_labelled(config.steer.prompts)
    column, value = parse_concept(flags["concept"], labelled)
    steerer = Steerer.from_pretrained(pathlib.Path(config.run, "export"))
    pipe = load_pipeline(config.model)
    sides = split(labelled, column, value)
    sampling = None
    if hook_points.is_denoiser_site(steerer.site):
        sides, sampling = [few(side, flags["pictures"]) for side in sides], sampling_of(pipe, config.steer)
    learned, rows = find_latents(pipe, steerer.site, steerer.placed(pipe), *sides, ratio, flags["most"], sampling)
    folder = pathlib.Path(config.run, "steering")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{file_name(value)}.safetensors"
    save_learned(file, value, learned)
    for row in rows:
        print(
            "latent {latent:6d}  fires on {share_with:.3f} of the concept's prompts, "
            "{share_without:.3f} of others".format(**row)
        )
    print(f"{len(rows)} latents of {value!r}: {file}")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
