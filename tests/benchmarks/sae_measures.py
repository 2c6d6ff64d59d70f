"""Measure whether each measure of latents ranks a trained SAE above baselines of the same shape, store and k.

    revelio extract|train|export --config mini_sd           # once for each config
    python tests/benchmarks/sae_measures.py runs/mini_sd --label category --finer name --json measures.json

Baselines: neurons; a random dictionary; an untrained SAE, which is the initialization of the trained one after a single
step at a learning rate of about 0. The script trains the SAE again with another seed, for stability. Its runs are
folders in the folder of the run: seed, untrained, untrained_seed, random_0, random_1; trained ones are reused.

With --embedder, the monosemanticity score is measured too. With --json, rows are written: {run, sae, measure: value},
where a value is [mean, low, high], with null for unknown ends of an interval.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import typing

import numpy as np
import results as json_results
from safetensors.numpy import save_file

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import report_errors
from revelio_jax.evaluation.stability import stability
from revelio_jax.export import export
from revelio_jax.interpret.embeddings import embedding_file
from revelio_jax.interpret.latents import dictionary
from revelio_jax.interpret.latents.interpretation import interpret
from revelio_jax.interpret.latents.stream import open_site
from revelio_jax.interpret.probes import experiment
from revelio_jax.interpret.probes.experiment import ProbeSettings
from revelio_jax.sae_folder import reader
from revelio_jax.train import train

# The folders of a run, and of its copy with another seed: SAE -> folder in the run.
FOLDERS = {"trained": (".", "seed"), "untrained": ("untrained", "untrained_seed"), "random": ("random_0", "random_1")}
NONE = [None, None, None]


def trained(config: Config, folder: pathlib.Path, **fields) -> None:
    """Train and export a run in ``folder`` with other fields of config.train, unless it exists."""
    if (folder / "export" / "cfg.json").is_file():
        return
    config = dataclasses.replace(config, run=str(folder), train=dataclasses.replace(config.train, **fields))
    train(config)
    export(config)


def untrained(config: Config, folder: pathlib.Path, seed: int) -> None:
    fields = {"steps": 1, "warmup_steps": 0, "decay_share": 0.0, "learning_rate": 1e-12}
    trained(config, folder, seed=seed, **fields)


def random(config: Config, folder: pathlib.Path, seed: int) -> None:
    """Write a run whose SAE folder has random unit decoder rows, their transpose as encoder, and the store's mean."""
    run = pathlib.Path(config.run)
    shutil.copytree(run / "export", folder / "export", dirs_exist_ok=True)
    like = dictionary.load(str(run / "export"))
    _, site = open_site(config)
    W_FD = dictionary.random(like, site).W_dec_FD
    W_FD = np.random.default_rng(seed).permuted(W_FD, axis=1)  # shuffled coordinates are another random dictionary
    tensors = {"W_enc": W_FD.T, "b_enc": np.zeros(len(W_FD)), "W_dec": W_FD, "b_dec": site.mean}
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    save_file(tensors, folder / "export" / reader.WEIGHTS)
    cfg = json.loads((folder / "export" / reader.CONFIG).read_text()) | {"architecture": "topk", "k": like.k}
    (folder / "export" / reader.CONFIG).write_text(json.dumps(cfg))
    (folder / "config.json").write_text(config.to_json())


def interval(mean: dict[str, typing.Any] | None) -> list[float | None]:
    return NONE if mean is None else [mean["mean"], mean["low"], mean["high"]]


def of_latents(config: Config, labels: list[str]) -> dict[str, list[float | None]]:
    """Return the means of the measures of ``revelio interpret``."""
    summary = interpret(config)[0].summary
    found = {name: interval(mean["measured"]) for name, mean in summary["measures"].items()}
    found |= {f"{name} by chance": [mean["chance"], None, None] for name, mean in summary["measures"].items()}
    return found | {f"purity of {label}": interval(summary["purity"][label]["measured"]["purity"]) for label in labels}


def of_probes(run: pathlib.Path, labels: list[str], finer: str) -> dict[str, dict[str, list[float | None]]]:
    """Return the results of the sparse probes and of absorption, for "latents" and "activations"."""
    settings = ProbeSettings("", 0, 0, 0, 0.0, finer)
    probed = experiment.open_run(str(run), tuple(labels), settings)
    rows = probed.row_keys(settings, ("sparse", "absorption"))
    # The middle timestep, because each takes as long as the others.
    middle = probed.timesteps[len(probed.timesteps) // 2]
    rows = [row for row in rows if row["timestep"] == middle]
    found = {"latents": {}, "activations": {}}
    for row in experiment.train(probed, settings, rows, 1.0):
        label, of_input = row["label"], found[row["input"]]
        if row["probe"] == "absorption":
            of_input[f"absorbed fraction, {label}"] = [row["fraction_absorption"], None, None]
            of_input[f"fully absorbed, {label}"] = [row["full_absorption"], None, None]
            continue
        for k in ("1", "5"):
            of_input[f"AUROC at k {k}, {label}"] = [row["auroc"][k], None, None]
            of_input[f"balanced accuracy at k {k}, {label}"] = [row["balanced_accuracy"][k], None, None]
        of_input[f"F1 of the best, {label}"] = [row["best_f1"], None, None]
    return found


def measure(
    run: pathlib.Path, labels: list[str], finer: str, embedder: str | None, again: bool
) -> list[dict[str, typing.Any]]:
    """Return a row per SAE: the trained one, neurons, a random dictionary, and an untrained SAE."""
    flags = [f"--config={run / 'config.json'}"] + [f"--config.interpret.embedder={embedder}"] * bool(embedder)
    config, _ = parse(["sae_measures", *flags], "")
    if again:
        trained(config, run / "seed", seed=config.train.seed + 1)
    for number in (0, 1):
        untrained(config, run / FOLDERS["untrained"][number], seed=config.train.seed + number)
        random(config, run / FOLDERS["random"][number], seed=number)
    rows = []
    for name, (one, other) in FOLDERS.items():
        folder = run / one
        if (run / embedding_file.NAME).is_file() and folder != run:
            shutil.copy(run / embedding_file.NAME, folder)
        found = of_latents(dataclasses.replace(config, run=str(folder)), labels)
        probes = of_probes(folder, labels, finer)
        found |= probes["latents"]
        if again or name != "trained":
            shared = stability(*(reader.read_folder(run / each / "export").W_dec_FD for each in (one, other)))
            found["stability"] = [shared["mean_cosine"], None, None]
            found["shared above 0.7"] = [shared["shared"], None, None]
        rows.append({"run": run.name, "sae": name, **found})
        print(json.dumps(rows[-1]), flush=True)
        if name == "trained":
            neurons = dataclasses.replace(config, interpret=dataclasses.replace(config.interpret, sae="neurons"))
            rows.append({"run": run.name, "sae": "neurons", **of_latents(neurons, labels), **probes["activations"]})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--label", action="append", required=True)
    parser.add_argument("--finer", default="")
    parser.add_argument("--embedder")
    parser.add_argument("--no_seed", action="store_true", help="do not train again; leave out the stability of the SAE")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    json_results.check(arguments.json)
    rows = []
    for run in arguments.runs:
        rows += measure(run, arguments.label, arguments.finer, arguments.embedder, not arguments.no_seed)
        json_results.write(arguments.json, rows)


if __name__ == "__main__":
    with report_errors():
        main()
