"""Match each latent of one SAE with the most similar firing latent of another.

By decoder: the largest cosine of decoder rows, which is meaningful if both SAEs belong to one hook point. By samples:
the largest Jaccard index of the top samples, which is defined if both were computed from one store.
"""

import pathlib

import numpy as np
import tqdm
from safetensors import SafetensorError, safe_open

from revelio_jax.errors import InputError
from revelio_jax.interpret.latents.results import Results
from revelio_jax.store.parquet import compute

BLOCK = 2048  # latents of each SAE in one product of decoders
PAIRS = 2**22  # pairs of latents in one comparison of samples


def check(results: Results) -> None:
    """Raise InputError if the results belong to an SAE whose decoder cannot be read."""
    try:
        if _folder(results):
            _decoder(results)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{results.folder}: its SAE folder {_folder(results)} cannot be read: {error}") from error


def by_decoder(a: Results, b: Results) -> tuple[np.ndarray, np.ndarray] | None:
    """Return for each latent of ``a`` the nearest firing latent of ``b``, int32 [F], and their cosine, float32 [F].

    Return None if the widths differ, either has no decoder, or no latent of ``b`` fires.
    """
    if a.summary["d"] != b.summary["d"] or not (_folder(a) and _folder(b)):
        return None
    # Dead latents of two SAEs with the same seed can have the same initial directions.
    dead_F = b.latents["rows"].to_numpy() == 0
    if dead_F.all():
        return None
    nearest = np.zeros(a.summary["latents"], np.int32)
    cosine = np.full(a.summary["latents"], -np.inf, np.float32)
    with _decoder(a) as file_a, _decoder(b) as file_b:
        rows_a, rows_b = file_a.get_slice("W_dec"), file_b.get_slice("W_dec")
        for start in tqdm.trange(0, len(nearest), BLOCK, desc="decoders", unit="block", dynamic_ncols=True):
            block = slice(start, start + BLOCK)
            ours = _unit(rows_a[start : min(start + BLOCK, len(nearest))])
            for other in range(0, b.summary["latents"], BLOCK):
                theirs = slice(other, min(other + BLOCK, b.summary["latents"]))
                product = ours @ _unit(rows_b[theirs]).T
                product[:, dead_F[theirs]] = -np.inf
                best = product.argmax(1)
                score = product[np.arange(len(best)), best]
                better = score > cosine[block]
                nearest[block][better] = best[better] + other
                cosine[block][better] = score[better]
    return nearest, cosine


def by_samples(a: Results, b: Results) -> tuple[np.ndarray, np.ndarray] | None:
    """Return matches in the form of :func:`by_decoder`, by the Jaccard index of the top samples.

    A latent without a shared sample has match -1 and score 0. Return None if the stores differ.
    """
    if a.summary["store"]["fingerprint"] != b.summary["store"]["fingerprint"]:
        return None
    (latents_a, samples_a), (latents_b, samples_b) = _top(a), _top(b)
    count_a = np.bincount(latents_a, minlength=a.summary["latents"])
    count_b = np.bincount(latents_b, minlength=b.summary["latents"])
    # Sort b by sample, so that the latents of one sample are a slice.
    order = np.argsort(samples_b, kind="stable")
    latents_b, samples_b = latents_b[order], samples_b[order]
    spans = np.searchsorted(samples_b, samples_a), np.searchsorted(samples_b, samples_a, "right")
    match = np.full(len(count_a), -1, np.int32)
    score = np.zeros(len(count_a), np.float32)
    step = max(1, PAIRS // max(1, len(count_b)))
    firsts = np.searchsorted(latents_a, np.arange(len(count_a) + 1))
    for start in tqdm.trange(0, len(count_a), step, desc="samples", unit="block", dynamic_ncols=True):
        stop = min(start + step, len(count_a))
        rows = range(firsts[start], firsts[stop])
        pairs = [
            (latents_a[i] - start) * len(count_b) + latents_b[spans[0][i] : spans[1][i]].astype(np.int64) for i in rows
        ]
        if not pairs:
            continue
        shared = np.bincount(np.concatenate(pairs), minlength=(stop - start) * len(count_b))
        shared = shared.reshape(stop - start, len(count_b))
        jaccard = shared / np.maximum(count_a[start:stop, None] + count_b - shared, 1)
        best = jaccard.argmax(1)
        best_score = jaccard[np.arange(len(best)), best]
        score[start:stop] = best_score
        match[start:stop] = np.where(best_score > 0, best, -1)
    return match, score


def _folder(results: Results) -> str:
    return results.summary["sae"]["folder"]


def _decoder(results: Results):
    return safe_open(pathlib.Path(_folder(results), "sae_weights.safetensors"), "np")


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _top(results: Results) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns latent and sample of all top samples, sorted by latent."""
    table = results.samples.filter(compute.equal(results.samples["kind"], "top"))
    return table["latent"].to_numpy(), table["sample"].to_numpy()
