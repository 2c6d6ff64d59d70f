"""Write the data of the pages of single latents, in chunks of up to 64 latents."""

import collections
import pathlib
import typing

import numpy as np
import tqdm

from revelio_jax.interpret.report import scripts
from revelio_jax.interpret.report.report_data import MEASURES, ReportData
from revelio_jax.interpret.report.scripts import number

BYTES = 100_000  # target size of a chunk
MAX_LATENTS = 64  # largest number of latents in a chunk
MEASURED = 64  # number of pages whose size is measured to choose the size of chunks


def write(report: pathlib.Path, data: ReportData) -> int:
    """Write ``data/latents/N.js``; return the number of latents in each.

    A page is the dict that :meth:`_Reader._page` returns. ``named`` in a chunk has the names of all latents that its
    pages mention (see :meth:`ReportData.name_of_latent`), in the order of ``numbers``.
    """
    reader = _Reader(data)
    firing = np.flatnonzero(data.fires)
    measured = firing[:: max(1, len(firing) // MEASURED)]
    sizes = [len(scripts.dumps(reader.chunk(latent, latent + 1)).encode()) for latent in measured.tolist()]
    chunk_size = int(np.clip(BYTES / max(1.0, float(np.mean(sizes or [1]))), 1, MAX_LATENTS))
    starts = range(0, data.latents, chunk_size)
    for index, start in enumerate(tqdm.tqdm(starts, desc="pages", unit="chunk", dynamic_ncols=True)):
        scripts.write(report, f"latents/{index}", reader.chunk(start, min(start + chunk_size, data.latents)))
    return chunk_size


class _Reader:
    """The columns of the results as arrays; a chunk consists of slices of them."""

    def __init__(self, data: ReportData):
        self.data = data
        samples = data.results.samples
        self.kind, self.kinds = _encode_strings(samples["kind"])
        self.stratum, self.strata = _encode_strings(samples["stratum"])
        self.samples = {name: samples[name].to_numpy() for name in ("sample", "position", "timestep")}
        self.samples["value"] = scripts.round_digits(samples["value"].to_numpy())
        self.samples["quantile"] = scripts.round_digits(samples["quantile"].to_numpy(), 3)
        strata = data.results.strata.sort_by([("latent", "ascending")])
        self.offsets = np.searchsorted(strata["latent"].to_numpy(), np.arange(data.latents + 1))
        self.by_stratum = strata
        self.has_profile = bool(np.prod(data.summary["cells"]) > 1)

    def chunk(self, start: int, stop: int) -> dict[str, typing.Any]:
        data = self.data
        part = data.results.part
        histogram = part("histogram", start, stop)
        profile = part("profile", start, stop) if self.has_profile else None
        near = {
            name: (part(name, start, stop), part(score, start, stop))
            for name, score in (("coactive", "coactive_score"), ("nearest", "nearest_cosine"))
        }
        pages, mentioned = [], set()
        for latent in range(start, stop):
            page = self._page(latent)
            page["histogram"] = histogram[latent - start].tolist()
            if profile is not None and page["top"]:
                page["profile"] = scripts.pack(profile[latent - start, : len(page["top"])])
            for name, (others, scores) in near.items():
                page[name] = [
                    [other, number(score, 3)]
                    for other, score in zip(
                        others[latent - start].tolist(), scores[latent - start].tolist(), strict=True
                    )
                    if other >= 0
                ]
                mentioned.update(other for other, _ in page[name])
            pages.append(page)
        numbers = sorted(mentioned)
        return {
            "start": start,
            "pages": pages,
            "numbers": numbers,
            "named": [data.name_of_latent(other) for other in numbers],
        }

    def _page(self, latent: int) -> dict[str, typing.Any]:
        """Return the contents of the page of a latent.

        ``labels`` has [purity, entropy, sigma, majority] per label. ``top``, ``weaker``, and ``kept`` of each stratum
        have samples as [sample, position, timestep, value, quantile]. ``profile`` is packed uint8 [top, cells].
        ``coactive`` and ``nearest`` have [latent, score].
        """
        data = self.data
        columns = data.columns
        samples: dict[str, list] = {"top": [], "weaker": []}
        of_stratum = collections.defaultdict(list)
        span = slice(*data.offsets[latent : latent + 2])
        rows = zip(*(column[span].tolist() for column in self.samples.values()), strict=True)
        numbers = zip(self.kind[span].tolist(), self.stratum[span].tolist(), rows, strict=True)
        for kind, stratum, row in numbers:
            if self.kinds[kind] == "stratum":
                of_stratum[self.strata[stratum]].append(row)
            else:
                samples[self.kinds[kind]].append(row)
        return {
            "rows": int(columns["rows"][latent]),
            "samples": int(columns["samples"][latent]),
            "frequency": number(columns["frequency"][latent]),
            "mean": number(columns["mean"][latent]),
            "max": number(columns["max"][latent]),
            "spread": number(columns["spread"][latent]),
            "words": data.words[latent],
            "tag": data.tags.get(latent),
            "labels": [
                [
                    *(number(columns[f"{label}.{measure}"][latent]) for measure in MEASURES),
                    data.majority[label][latent],
                ]
                for label in data.labels
            ],
            **samples,
            "strata": self._strata(latent, of_stratum),
        }

    def _strata(self, latent: int, samples: dict[str, list]) -> list[dict[str, typing.Any]]:
        """Return the strata in which the latent fires, in the order of the summary."""
        start, stop = self.offsets[latent : latent + 2]
        rows = self.by_stratum.slice(start, stop - start).to_pylist()
        rows = [row for row in rows if row["rows"]]
        order = {str(value): i for i, value in enumerate(self.data.summary["stratum"]["values"])}
        rows.sort(key=lambda row: order.get(row["stratum"], len(order)))
        return [
            {
                "stratum": row["stratum"],
                "rows": row["rows"],
                "samples": row["samples"],
                "mean": number(row["mean"]),
                "max": number(row["max"]),
                "labels": [
                    [*(number(row[f"{label}.{measure}"]) for measure in MEASURES), row[f"{label}.majority"]]
                    for label in self.data.labels
                ],
                "kept": samples.get(row["stratum"], []),
            }
            for row in rows
        ]


def _encode_strings(column) -> tuple[np.ndarray, list]:
    """Return a column of strings as indices into a list of its values; the last value is None."""
    coded = column.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    return coded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False), [*values, None]
