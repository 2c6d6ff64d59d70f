"""Export a checkpoint of a run as an SAE folder for steering.

    revelio export --config mini_sd
    revelio export --config mini_sd --config.train.use=best

config.train.use chooses the checkpoint: ``newest``, the default, or ``best``, the one with the lowest FVU in
training. Writes export/ into the folder config.run: cfg.json and sae_weights.safetensors in SAELens's layout,
readable by sae_lens.SAE.load_from_disk, and README.md, the model card. With config.train.ema the moving average
of the parameters is exported. Only the run folder is read, and training may still be running.
"""

import importlib.metadata
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save_file

from revelio_jax import checksums, run_folders
from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import InputError, memory_advice, report_errors
from revelio_jax.files import replacing_folder
from revelio_jax.sae_folder.card import card, cfg_json
from revelio_jax.sae_folder.cfg import Cfg, SaeMetadata
from revelio_jax.sae_folder.fields import cfg_sha256
from revelio_jax.store import ModelRecord
from revelio_jax.training.mixture import RowsRecord
from revelio_jax.training.run import restore_run
from revelio_jax.training.step import State

# SAELens's names. batch_topk infers with one threshold for all latents, which is a jumprelu.
ARCHITECTURES = {"topk": "topk", "batch_topk": "jumprelu", "jumprelu": "jumprelu", "dense": "standard"}
LIBRARIES = ("revelio_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def export(config: Config) -> pathlib.Path:
    """Export the checkpoint that config.train.use chooses, the newest or the best; return the SAE folder.

    Replace an earlier export. Raise InputError if the run has no checkpoint of this configuration.
    """
    run, rows, state, _ = restore_run(config)
    cfg = describe(config, run, rows, state)
    tensors = fold(state, config.sae.architecture)
    with replacing_folder(run / "export") as folder:
        weights = folder / "sae_weights.safetensors"
        sums = {checksums.TENSORS: checksums.of_tensors(tensors), checksums.CFG: cfg_sha256(cfg)}
        save_file(tensors, weights, metadata={"format": "pt", **sums})
        with weights.open("r+b") as file:  # only the header, which keeps its size
            size = 8 + int.from_bytes(file.read(8), "little")
            file.seek(0)
            header = checksums.sort_metadata(file.read(size))
            file.seek(0)
            file.write(header)
        (folder / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")
        shutil.copymode(folder / "cfg.json", weights)  # safetensors creates files that only the owner can read
        (folder / "README.md").write_text(card(cfg))
    run_folders.push(run)
    return run / "export"


def fold(state: State, architecture: str) -> dict[str, np.ndarray]:
    """Fold the normalization into the parameters, so that they apply to unnormalized rows.

    Return float32 W_enc [d, n], b_enc [n], W_dec [n, d] and b_dec [d]; for batch_topk and jumprelu also
    threshold [n].

    Training normalizes rows to (x - mean) / s. With b_dec' = mean + s b_dec and b_enc' = s b_enc, the
    pre-activations W_enc (x - b_dec') + b_enc' are s times larger than in training. The same latents fire, s times
    larger, and W_dec z' + b_dec' is mean + s x_hat. Thresholds are s times larger too. The matrices do not
    change, so decoder rows keep unit norm (approximately, for a moving average).
    """
    params = {name: np.asarray(value, np.float64) for name, value in state.best_params.items()}
    mean_D, scale = np.asarray(state.mean_D, np.float64), float(state.scale)
    folded = {
        "W_enc": params["W_enc_FD"].T,
        "b_enc": scale * params["b_enc_F"],
        "W_dec": params["W_dec_FD"],
        "b_dec": mean_D + scale * params["b_dec_D"],
    }
    if architecture == "jumprelu":
        folded["threshold"] = scale * np.exp(params["log_threshold_F"])
    elif architecture == "batch_topk":
        folded["threshold"] = np.full(len(params["b_enc_F"]), scale * float(state.threshold))
    return {name: np.ascontiguousarray(value, np.float32) for name, value in folded.items()}


def describe(config: Config, run: pathlib.Path, rows: RowsRecord, state: State) -> Cfg:
    """Return the contents of cfg.json: SAELens's fields, and the fields of steering under ``metadata``."""
    step = int(state.step)
    model: ModelRecord = {"id": config.model.id, "revision": config.model.revision or "", "family": config.model.family}
    model |= rows["model"]
    latents = len(state.params["b_enc_F"])
    metadata: SaeMetadata = {
        "model_id": model.get("id"),
        "revision": model.get("revision", ""),
        "family": model.get("family", ""),
        "site": rows["site"],
        "sites": [{"name": rows["site"], "width": rows["d"]}],
        "value": rows["value"],
        "positions": ", ".join(dict.fromkeys(stored or config.extract.positions for stored in rows["positions"])),
        "architecture": config.sae.architecture,
        "k": config.sae.k,
        "activations": rows["activations"],
        # Already folded into the tensors: an exported latent is scale times the latent of training.
        "normalization": {"rule": config.sae.normalize, "scale": float(state.scale)},
        "dead_threshold": config.sae.dead_threshold * float(state.scale),
        "stores": rows["stores"],
        "training": {
            "steps": step,
            "rows": step * config.train.batch_size,
            "learning_rate": config.train.learning_rate,
            "batch_size": config.train.batch_size,
            "seed": config.train.seed,
        },
        "evaluation": evaluation(run, step),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }
    architecture = ARCHITECTURES[config.sae.architecture]
    return cfg_json(architecture, rows["d"], latents, config.sae.k, metadata)


def evaluation(run: pathlib.Path, step: int) -> dict[str, float] | None:
    """Return the numbers of evaluation.json, or None if it is missing or belongs to another step.

    Raise InputError if it is broken.
    """
    path = run / "evaluation.json"
    try:
        contents = json.loads(path.read_text()) if path.exists() else {}  # values may be NaN
        if not isinstance(contents, dict):
            raise ValueError("it is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is broken: {error}; delete it, or run revelio evaluate again") from error
    if contents.get("step") != step:
        return None
    return {name: value for name, value in contents.items() if isinstance(value, int | float)}


@memory_advice("use more devices: config.mesh.feature")
def main(argv: Sequence[str]) -> None:
    config, _ = parse(["revelio_jax.export", *argv], __doc__)
    print(f"exported to {run_folders.location(export(config))}")


if __name__ == "__main__":
    with report_errors():
        main(sys.argv[1:])
