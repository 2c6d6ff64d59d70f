"""Write the newest checkpoint of a run as an SAE folder, the one that steering reads.

    python -m revelio_jax.export --config configs/mini_sd.py

Writes export/ into the folder config.run: cfg.json and sae_weights.safetensors as SAELens lays
them out, so that sae_lens.SAE.load_from_disk reads them too, and README.md, the model card. A moving
average of the parameters, where there is one, is what is exported.
"""

import importlib.metadata
import json
import pathlib
import shutil
import sys
import typing
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save_file

from revelio_jax.cli import parse
from revelio_jax.config import Config
from revelio_jax.errors import reported
from revelio_jax.evaluate import trained
from revelio_jax.sae_folder.card import card, cfg_json
from revelio_jax.training.mixture import Mixture
from revelio_jax.training.step import State

# Names of SAELens. What batch_topk infers with is a jumprelu of one threshold for all latents.
ARCHITECTURES = {"topk": "topk", "batch_topk": "jumprelu", "jumprelu": "jumprelu", "dense": "standard"}
LIBRARIES = ("revelio_jax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def export(config: Config) -> pathlib.Path:
    """Export the run's newest checkpoint; returns the folder."""
    run, mixture, state, _ = trained(config)
    folder, part, old = run / "export", run / "export.part", run / "export.old"
    for left in (part, old):
        shutil.rmtree(left, ignore_errors=True)
    part.mkdir()
    cfg = describe(config, run, mixture, state)
    tensors = fold(state, config.sae.architecture)
    weights = part / "sae_weights.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    (part / "cfg.json").write_text(json.dumps(cfg, indent=1) + "\n")
    shutil.copymode(part / "cfg.json", weights)  # safetensors makes files that nobody else can read
    (part / "README.md").write_text(card(cfg))
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def fold(state: State, architecture: str) -> dict[str, np.ndarray]:
    """W_enc [d, n], b_enc [n], W_dec [n, d], b_dec [d], float32, for rows as they are in the pipeline.

    For batch_topk and jumprelu also threshold [n].

    Training saw (x - mean) / s. With b_dec' = mean + s b_dec and b_enc' = s b_enc the pre-activations
    W_enc (x - b_dec') + b_enc' are s times those of training, so the same latents fire, s times larger,
    and W_dec z' + b_dec' is mean + s x_hat. Thresholds are s times larger too. The matrices, and with them
    unit-norm decoder rows (of a moving average: nearly so), stay.
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


def describe(config: Config, run: pathlib.Path, mixture: Mixture, state: State) -> dict[str, typing.Any]:
    """cfg.json: what SAELens needs, and under metadata all that steering and a reader need."""
    step = int(state.step)
    manifests = [store.manifest for store in mixture.stores]
    model = {"id": config.model.id, "revision": config.model.revision or "", "family": config.model.family}
    model |= manifests[0].get("model", {})  # the same in all
    positions = [manifest.get("extract", {}).get("positions") for manifest in manifests]
    latents = len(state.params["b_enc_F"])
    metadata = {
        "model_id": model["id"],
        "revision": model["revision"],
        "family": model["family"],
        "site": mixture.name,
        "sites": [{"name": mixture.name, "width": mixture.d}],
        # What a row is at sites of a denoiser: a block's output, or its difference from its input.
        "value": manifests[0].get("extract", {}).get("value", "output"),
        "positions": ", ".join(dict.fromkeys(kept or config.extract.positions for kept in positions)),
        "architecture": config.sae.architecture,
        "k": config.sae.k,
        "activations": {
            "count": mixture.rows,
            "mean_norm": float(np.linalg.norm(mixture.mean)),
            "squared_deviation": float(mixture.variance.sum()),
        },
        # Already folded into the tensors: a latent here is scale times the latent of training.
        "normalisation": {"rule": config.sae.normalize, "scale": float(state.scale)},
        "dead_threshold": config.sae.dead_threshold * float(state.scale),
        "stores": [
            {"fingerprint": store.fingerprint, "share": float(share)}
            for store, share in zip(mixture.stores, mixture.shares, strict=True)
        ],
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
    return cfg_json(architecture, mixture.d, latents, config.sae.k, metadata)


def evaluation(run: pathlib.Path, step: int) -> dict[str, typing.Any] | None:
    """The numbers of evaluation.json, None where it is missing or of another step."""
    path = run / "evaluation.json"
    measured = json.loads(path.read_text()) if path.exists() else {}
    if measured.get("step") != step:
        return None
    return {name: value for name, value in measured.items() if isinstance(value, int | float)}


def main(argv: Sequence[str]) -> None:
    config, _ = parse(["revelio_jax.export", *argv], __doc__)
    print(f"exported to {export(config)}")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
