"""Prompts and labels of the samples that appear, in small files that all latents share."""

import pathlib
import typing
from collections.abc import Sequence

import tqdm

from revelio_jax.interpret import token_text
from revelio_jax.interpret.report import scripts
from revelio_jax.interpret.report.material import ReportData

BYTES = 4096  # of a file, about: a page reads as many files as it shows samples
PROMPT = 2000  # letters of a prompt that are shown where no token stands for them


def write(report: pathlib.Path, material: ReportData) -> int:
    """Write ``data/samples/N.js``, each with the samples of a span of numbers; returns how wide a span is.

    A sample is [prompt, labels, has a picture], its prompt a text or [pieces, special, unread]: a piece a
    token, the numbers of the special ones, and what of the prompt has no token.
    """
    ids = material.kept.tolist()
    few = _rows(material, ids[:: max(1, len(ids) // 256)])
    mean = sum(len(scripts.dumps(row).encode()) for row in few.values()) / max(1, len(few))
    # Where few of a store's samples appear, a span holds fewer than it is wide.
    share = len(ids) / max(1, ids[-1] + 1) if ids else 1
    span = max(1, round(BYTES / max(1, mean) / max(share, 1e-9)))
    groups: dict[int, list[int]] = {}
    for sample in ids:
        groups.setdefault(sample // span, []).append(sample)
    for number, group in tqdm.tqdm(groups.items(), desc="prompts", unit="file", dynamic_ncols=True):
        scripts.write(report, f"samples/{number}", _rows(material, group))
    return span


def _rows(material: ReportData, ids: Sequence[int]) -> dict[int, list[typing.Any]]:
    tokens, labels = material.facts.get("tokens"), material.labels
    rows = material.samples.take(ids).to_pylist()
    return {
        sample: [
            _prompt(row, tokens),
            [str(row.get(label) if row.get(label) is not None else "") for label in labels],
            sample in material.drawn,
        ]
        for sample, row in zip(ids, rows, strict=True)
    }


def _prompt(row: dict[str, typing.Any], tokens: str | None) -> typing.Any:
    prompt = str(row.get("prompt") or row.get("image") or "")
    if not tokens or not row.get(tokens):
        return _cut(prompt)
    shown = token_text.pieces(row[tokens])
    special = [i for i, token in enumerate(row[tokens]) if token_text.special(token)]
    return [shown, special, _cut(token_text.unread(prompt, shown))]


def _cut(text: str) -> str:
    left = len(text) - PROMPT
    return f"{text[:PROMPT]}… ({left:,} more characters)" if left > 0 else text
