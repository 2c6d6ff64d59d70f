"""Compute measures of latents with SAEBench and overcomplete. Runs in the peers' venv.

.venv-peers/bin/python tests/benchmarks/peer_measures.py FILE

FILE is a safetensors file with small arrays; the results are written next to it, into FILE.json. The arrays are rows
x [N, D], latents z [N, F], decoder rows W_dec and W_other [F, D] of norm 1, reconstructions x_hat [N, D], a probe [D],
main [M] the numbers of the main latents, and is_class [N], 1 for half of the rows.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

import torch
from safetensors.torch import load_file


def module(package: str, path: str) -> types.ModuleType:
    """Import one file of a package without the package, which imports models that its metrics do not use."""
    (file,) = [file for file in importlib.metadata.files(package) if str(file) == path]
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), file.locate())
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Model:
    """A stand-in for a language model, whose activations are given rows."""

    tokenizer = object()

    def __init__(self, x_ND):
        self.x_ND = x_ND

    def to_tokens(self, text):
        return [[0, 0]]

    def run_with_cache(self, prompts, names_filter):
        rows = [int(prompt.split(":")[0]) for prompt in prompts]
        return None, {names_filter[0]: self.x_ND[rows][:, None]}


class Sae:
    """A stand-in for an SAE, whose latents of given rows are given."""

    device, dtype = "cpu", torch.float32

    def __init__(self, x_ND, z_NF, W_dec):
        self.x_ND, self.z_NF, self.W_dec = x_ND, z_NF, W_dec

    def encode(self, x_BD):
        return torch.stack([self.z_NF[(self.x_ND == x).all(1)][0] for x in x_BD])


def absorption(arrays) -> dict:
    from sae_bench.evals.absorption.feature_absorption_calculator import FeatureAbsorptionCalculator

    count = len(arrays["x"])
    calculator = FeatureAbsorptionCalculator(Model(arrays["x"]), [], word_token_pos=0, topk_feats=3)
    # The prompts are the numbers of the rows.
    calculator._build_prompts = lambda words: [types.SimpleNamespace(base=f"{w}:", word=w) for w in words]
    results = calculator.calculate_absorption(
        Sae(arrays["x"], arrays["z"], arrays["W_dec"]),
        [str(i) for i in range(count)],
        arrays["probe"],
        arrays["main"].tolist(),
        layer=0,
        show_progress=False,
    ).word_results
    return {
        "fraction": [float(each.absorption_fraction) for each in results],
        "is_full": [bool(each.is_full_absorption) for each in results],
    }


def sparse_probe(arrays) -> dict:
    """The features and the accuracy of the probe on k features, fitted on the first half of the rows."""
    from sae_bench.evals.sparse_probing import probe_training

    half = len(arrays["z"]) // 2
    z, label = arrays["z"], arrays["is_class"].to(torch.int32)
    found = {}
    for k in (1, 2, 5):
        mask = probe_training.get_top_k_mean_diff_mask(z[:half], label[:half], k)
        parts = [probe_training.apply_topk_mask_reduce_dim(part, mask) for part in (z[:half], z[half:])]
        _, accuracy = probe_training.train_sklearn_probe(parts[0], label[:half], parts[1], label[half:])
        found[k] = {"features": torch.nonzero(~mask)[:, 0].tolist(), "accuracy": float(accuracy)}
    return found


def overcomplete(arrays) -> dict:
    metrics = module("overcomplete", "overcomplete/metrics.py")
    return {
        "cosine_hungarian_loss": metrics.cosine_hungarian_loss(arrays["W_dec"], arrays["W_other"]),
        "l0": float(metrics.l0(arrays["z"])),
        "dead": metrics.dead_codes(arrays["z"]).tolist(),
        "r2": float(metrics.r2_score(arrays["x"], arrays["x_hat"])),
        "collinearity": metrics.dictionary_collinearity(arrays["W_dec"])[0],
    }


file = pathlib.Path(sys.argv[1])
arrays = load_file(file)
measured = {
    "versions": {name: importlib.metadata.version(name) for name in ("sae-bench", "overcomplete")},
    "absorption": absorption(arrays),
    "sparse_probe": sparse_probe(arrays),
    "overcomplete": overcomplete(arrays),
}
file.with_suffix(".json").write_text(json.dumps(measured))
