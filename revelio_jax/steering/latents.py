"""Which latents belong to a concept, found from labelled prompts.

    python -m revelio_jax.steering.latents --config configs/mini_sd.py --concept "style=glossy 3d"

A latent belongs to a concept when it fires on a larger share of the prompts that hold it than of
those that do not, --ratio times as large at least. Writes runs/<name>/steering/latents.json, which
the rule ``gated`` reads from then on.
"""

import json
import pathlib
import typing

import torch
import tqdm

from revelio_jax.config import main_argv, parse
from revelio_jax.errors import InputError, reported
from revelio_jax.steering.concept import hidden_states
from revelio_jax.steering.folder import Sae
from revelio_jax.steering.labels import Labelled, parse_concept, read_labelled
from revelio_jax.steering.pipeline import load_pipeline
from revelio_jax.steering.steerer import Steerer

FLAGS = {
    "concept": ("", "label column and value, such as style=glossy 3d"),
    "ratio": ("4", "least ratio of the shares of prompts on which a latent fires"),
    "most": (24, "latents to keep at most"),
}


def find_latents(
    pipe: typing.Any,
    site: str,
    sae: Sae,
    with_concept: list[str],
    without: list[str],
    ratio: float,
    most: int,
) -> list[dict[str, float]]:
    """Latents that fire more on prompts ``with_concept``, strongest difference first.

    Each is {latent, share_with, share_without, mean_with}; a latent fires on a prompt when it is
    among the k of any of its positions. ``mean_with`` is its mean peak over the prompts.
    """
    with_share, with_mean = _firing(pipe, site, sae, with_concept)
    without_share, _ = _firing(pipe, site, sae, without)
    belongs = (with_share >= ratio * without_share) & (with_share > 0)
    score = torch.where(belongs, with_mean * (with_share - without_share), -1.0)
    order = score.argsort(descending=True)[:most]
    return [
        {
            "latent": int(i),
            "share_with": round(float(with_share[i]), 4),
            "share_without": round(float(without_share[i]), 4),
            "mean_with": float(with_mean[i]),
        }
        for i in order
        if score[i] > 0
    ]


def _firing(pipe: typing.Any, site: str, sae: Sae, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the prompts on which each latent fires, and its mean peak: [F] and [F]."""
    fired = torch.zeros(sae.n_latents, device=sae.W_dec_FD.device)
    total = torch.zeros_like(fired)
    for start in tqdm.trange(0, len(prompts), 256, desc="latents", leave=False):
        peak = sae.codes(hidden_states(pipe, site, prompts[start : start + 256])).amax(1)
        fired += (peak > 0).sum(0)
        total += peak.sum(0)
    return fired / len(prompts), total / len(prompts)


def saved_latents(run: str) -> dict[str, list[int]]:
    """Latents of each concept's text that this command has found for a run, {} where none."""
    file = pathlib.Path(run, "steering", "latents.json")
    if not file.exists():
        return {}
    return {
        text: [row["latent"] for row in entry["latents"]]
        for text, entry in json.loads(file.read_text()).items()
    }


def split(labelled: list[Labelled], column: str, value: str) -> tuple[list[str], list[str]]:
    """Prompts that hold the concept, and prompts that say another value of its label."""
    with_concept = [row["prompt"] for row in labelled if row[column] == value]
    return with_concept, [row["prompt"] for row in labelled if row[column] not in (value, "")]


def main() -> None:
    config, flags = parse(main_argv("revelio_jax.steering.latents"), __doc__, **FLAGS)
    try:
        ratio = float(flags["ratio"])
    except ValueError:
        raise InputError(f"--ratio is {flags['ratio']!r}; it must be a number") from None
    labelled = read_labelled(config.steer.prompts)
    column, value = parse_concept(flags["concept"], labelled)
    steerer = Steerer.from_pretrained(pathlib.Path(config.train.run, "export"))
    pipe = load_pipeline(config.model)
    found = find_latents(
        pipe, steerer.site, steerer.placed(pipe), *split(labelled, column, value), ratio, flags["most"]
    )
    folder = pathlib.Path(config.train.run, "steering")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "latents.json"
    saved = json.loads(file.read_text()) if file.exists() else {}
    saved[value] = {"column": column, "ratio": ratio, "latents": found}
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(saved, indent=1) + "\n")
    partial.replace(file)
    for row in found:
        print("latent {latent:6d}  fires on {share_with:.3f} of the concept's prompts, "
              "{share_without:.3f} of others".format(**row))  # fmt: skip
    print(f"{len(found)} latents of {value!r} in {file}")


if __name__ == "__main__":
    with reported():
        main()
