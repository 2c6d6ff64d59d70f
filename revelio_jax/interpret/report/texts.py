"""Write prompts and labels of the samples that the report shows, in small files that all latents share."""

import pathlib
import typing
from collections.abc import Sequence

import tqdm

from revelio_jax.interpret import token_text
from revelio_jax.interpret.report import scripts
from revelio_jax.interpret.report.report_data import ReportData

BYTES = 4096  # target size of a file; small because a page reads up to one file per sample
PROMPT = 2000  # largest number of characters shown of a prompt without tokens


def write(report: pathlib.Path, data: ReportData) -> int:
    """Write ``data/samples/N.js``, each with the samples of a span of numbers; return the width of a span.

    A sample is [prompt, labels, has a thumbnail]. Its prompt is a text or [pieces, special, rest]: one piece per
    token, the indices of special tokens, and the rest of the prompt after the last token.
    """
    ids = data.shown_samples.tolist()
    measured = _rows(data, ids[:: max(1, len(ids) // 256)])
    mean = sum(len(scripts.dumps(row).encode()) for row in measured.values()) / max(1, len(measured))
    # If the report shows few of the store's samples, a span has fewer samples than numbers: widen it.
    share = len(ids) / max(1, ids[-1] + 1) if ids else 1
    span = max(1, round(BYTES / max(1, mean) / max(share, 1e-9)))
    groups: dict[int, list[int]] = {}
    for sample in ids:
        groups.setdefault(sample // span, []).append(sample)
    for number, group in tqdm.tqdm(groups.items(), desc="prompts", unit="file", dynamic_ncols=True):
        scripts.write(report, f"samples/{number}", _rows(data, group))
    return span


def _rows(data: ReportData, ids: Sequence[int]) -> dict[int, list[typing.Any]]:
    tokens, labels = data.summary.get("tokens"), data.labels
    rows = data.samples.take(ids).to_pylist()
    return {
        sample: [
            _prompt(row, tokens),
            [str(row.get(label) if row.get(label) is not None else "") for label in labels],
            sample in data.with_image,
        ]
        for sample, row in zip(ids, rows, strict=True)
    }


def _prompt(row: dict[str, typing.Any], tokens: str | None) -> typing.Any:
    prompt = str(row.get("prompt") or row.get("image") or "")
    if not tokens or not row.get(tokens):
        return _cut(prompt)
    shown = token_text.pieces(row[tokens])
    special = [i for i, token in enumerate(row[tokens]) if token_text.is_special(token)]
    return [shown, special, _cut(token_text.truncated_end(prompt, shown))]


def _cut(text: str) -> str:
    more = len(text) - PROMPT
    return f"{text[:PROMPT]}… ({more:,} more characters)" if more > 0 else text
