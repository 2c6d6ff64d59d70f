"""Read the prompt sets of the literature: I2P, P4D, Ring-A-Bell, MMA-Diffusion, UnlearnDiffAtk, COCO, HUB, RIEBench.

Each set becomes one record type. The columns of a file select its layout (:mod:`revelio_jax.inputs.prompt_layouts`).
"""

import dataclasses
import hashlib
import pathlib
import typing
from collections.abc import Mapping, Sequence

from revelio_jax import shipped
from revelio_jax.config import SteerConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs import hub, prompt_settings, tables
from revelio_jax.inputs.prompt_layouts import LABELED, LINES, Layout, find_layout, layout_called
from revelio_jax.inputs.tables import Row

SUFFIXES = (*tables.SUFFIXES, ".txt")
SETTINGS = ("seed", "guidance", "width", "height")
DEFAULT_SEED = 42  # of the evaluation scripts of Concept Steerers, SAFREE and TraSCE for sets without seeds
DEFAULT_SIDE = 512  # pixels, of Stable Diffusion 1.x
_POINTER = b"version https://git-lfs.github.com/spec/"
_INDEX_COLUMNS = ("", "Unnamed: 0", "__index_level_0__")  # row numbers that pandas writes


@dataclasses.dataclass(frozen=True)
class PromptRecord:
    """A prompt and the settings of its image.

    ``id`` is unique in its set. ``categories`` are the set's classes, for example the harms of I2P or the concept of
    HUB. ``nouns`` are things that must be visible in the image (HUB's pinpointness and selective alignment). ``labels``
    has the other columns of the file.
    """

    id: str
    prompt: str
    seed: int
    guidance: float
    width: int
    height: int
    categories: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])


@dataclasses.dataclass(frozen=True)
class PromptSet:
    """The prompts of one file, folder or dataset.

    ``layout`` is the name of its layout, and ``source`` is where authors publish such files. ``defaults`` has the
    settings that the set does not give, with their values. ``fingerprint`` is a hash of the files, or of the rows of a
    dataset.
    """

    layout: str
    source: str
    location: str
    records: tuple[PromptRecord, ...]
    defaults: Mapping[str, float]
    fingerprint: str

    def summary(self) -> str:
        """Return a line with the layout, the number of prompts and the origin of the settings. It has no prompt."""
        given = ", ".join(name for name in SETTINGS if name not in self.defaults)
        chosen = ", ".join(f"{name} {value:g}" for name, value in self.defaults.items())
        parts = [f"from the file: {given}"] * bool(given) + [f"defaults: {chosen}"] * bool(chosen)
        return f"{self.location}: {self.layout}, {len(self.records):,} prompts; {'; '.join(parts)}"

    def categories(self) -> dict[str, int]:
        """Return the number of prompts in each category. A prompt may have several."""
        counts: dict[str, int] = {}
        for record in self.records:
            for category in record.categories:
                counts[category] = counts.get(category, 0) + 1
        return dict(sorted(counts.items()))

    def in_category(self, category: str) -> "PromptSet":
        """Return the prompts of one category. Raise InputError if no prompt has it."""
        chosen = tuple(record for record in self.records if category in record.categories)
        if not chosen:
            known = ", ".join(self.categories()) or "none"
            raise InputError(f"unknown category {category!r}; {self.location} has {known}")
        return dataclasses.replace(self, records=chosen)


def read_prompt_set(
    location: str,
    layout: str | None = None,
    *,
    seed: int = DEFAULT_SEED,
    guidance: float | None = None,
    width: int = DEFAULT_SIDE,
    height: int = DEFAULT_SIDE,
    split: str = "train",
) -> PromptSet:
    """Read a prompt set.

    ``location`` is a file, a folder of files of one layout, ``hf://datasets/owner/name/file`` (``owner/name@revision``
    selects a revision), or a dataset ``owner/name`` of the hub with its ``split``. ``layout`` names the layout; None
    detects it from the columns. ``seed``, ``guidance`` (None: the scale that the authors use), ``width`` and ``height``
    are used for settings that the set does not give.

    Raise InputError if the location cannot be read, no layout fits, or a value is not allowed.
    """
    what = f"prompt set {location!r}"
    if layout is not None:
        layout_called(layout)
    path = pathlib.Path(shipped.locate(location))
    if hub.is_hub_file(location):
        sources = [_parse_file(what, hub.download_file(what, location), layout)]
    elif path.is_dir():
        sources = _parse_folder(what, path, layout)
    elif path.exists() or path.suffix in SUFFIXES or not hub.HUB_ID.fullmatch(location):
        sources = [_parse_file(what, path, layout)]
    else:
        sources = [_parse_dataset(what, location, split, layout)]
    chosen = sources[0].layout
    default = PromptRecord("", "", seed, chosen.default_guidance if guidance is None else guidance, width, height)
    records: list[PromptRecord] = []
    from_file: list[set[str]] = []
    for source in sources:
        columns = _settings_columns(chosen, source.rows)
        from_file.append(set(columns))
        prefix = f"{source.name}/" if len(sources) > 1 else ""
        records += _records(source.what, chosen, source.rows, columns, default, prefix)
    if len({record.id for record in records}) < len(records):
        raise InputError(f"{what}: two of its files have the same name without the suffix; rename one")
    if any(names != from_file[0] for names in from_file):
        raise InputError(f"{what}: some of its files have columns of seed, guidance or size, others do not")
    return PromptSet(
        layout=chosen.name,
        source=chosen.source,
        location=location,
        records=tuple(records),
        defaults={name: getattr(default, name) for name in SETTINGS if name not in from_file[0]},
        fingerprint=hashlib.sha256("".join(source.fingerprint for source in sources).encode()).hexdigest(),
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    """The expanded rows of one file. ``what`` names it in messages, ``name`` in the ids of several files."""

    what: str
    name: str
    layout: Layout
    rows: list[Row]
    fingerprint: str


def _parse_folder(what: str, folder: pathlib.Path, layout: str | None) -> list[_Source]:
    paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if not paths:
        inner = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())[:8]) or "none"
        raise InputError(f"{what}: the folder has no {', '.join(SUFFIXES)} files; folders in it: {inner}")
    sources = [_parse_file(f"{what}: {path.name}", path, layout) for path in paths]
    found = {source.layout.name: source.name for source in sources}
    if len(found) > 1:
        shown = ", ".join(f"{name} ({file})" for name, file in found.items())
        raise InputError(f"{what}: the files of a folder must have one layout; found {shown}")
    return sources


def _parse_file(what: str, path: pathlib.Path, name: str | None) -> _Source:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}") from error
    if data.startswith(_POINTER):
        raise InputError(f"{what}: the file is a Git LFS pointer without prompts; run git lfs pull in its repository")
    if path.suffix not in SUFFIXES:
        raise InputError(f"{what}: unknown suffix {path.suffix!r}; allowed: {', '.join(SUFFIXES)}")
    lines = {layout.name: layout for layout in LINES.values()}
    layout = LINES.get(path.parent.name) if name is None else lines.get(name)
    if layout is not None:
        rows: list[Row] = [{"prompt": line} for line in tables.lines(what, data) if line.strip()]
    elif path.suffix == ".txt":
        raise InputError(
            f"{what}: a text file has no columns; name its layout ({', '.join(lines)}) or put it into a folder called "
            f"{' or '.join(LINES)}"
        )
    else:
        rows = tables.read_rows(what, path.suffix, data)
        layout = find_layout(what, list(rows[0]), name) if rows else LABELED
    return _source(what, path.stem, layout, rows, hashlib.sha256(data).hexdigest())


def _parse_dataset(what: str, location: str, split: str, name: str | None) -> _Source:
    rows = hub.dataset_rows(what, location, split)
    layout = find_layout(what, list(rows[0]), name) if rows else LABELED
    fingerprint = hashlib.sha256(repr((location, split, rows)).encode()).hexdigest()
    return _source(what, location.rpartition("/")[2], layout, rows, fingerprint)


def _source(what: str, name: str, layout: Layout, rows: list[Row], fingerprint: str) -> _Source:
    if not rows:
        raise InputError(f"{what}: it has no prompts")
    for number, row in enumerate(rows):
        if missing := [column for column in layout.needed if column not in row]:
            raise InputError(f"{what}: row {number} has no {missing[0]!r}; the layout {layout.name} needs it")
    if layout.expand is not None:
        try:
            rows = layout.expand(rows, name)
        except (ValueError, TypeError) as error:
            raise InputError(f"{what}: layout {layout.name}: {error}") from error
    if not rows:  # COCO without annotations
        raise InputError(f"{what}: it has no prompts")
    return _Source(what, name, layout, rows, fingerprint)


def _settings_columns(layout: Layout, rows: Sequence[Row]) -> dict[str, str]:
    """Return the columns of the settings that the rows have."""
    named = {name: [column for column in getattr(layout, name) if column in rows[0]] for name in SETTINGS}
    return {name: columns[0] for name, columns in named.items() if columns}


def _records(
    what: str, layout: Layout, rows: Sequence[Row], columns: dict[str, str], default: PromptRecord, prefix: str
) -> list[PromptRecord]:
    for number, row in enumerate(rows):
        for column in (layout.prompt, *columns.values()):
            if column not in row:
                raise InputError(f"{what}: row {number} has no {column!r}, which other rows have")
        if not isinstance(row[layout.prompt], str):
            raise InputError(f"{what}: the prompt of row {number} is not text")
    named: dict[str, typing.Any] = {f"{name}_column": column for name, column in columns.items()}
    section = SteerConfig(
        **named,
        guidance=default.guidance,
        width=default.width,
        height=default.height,
    )
    try:
        settings = prompt_settings.read(rows, section)
    except InputError as error:
        raise InputError(f"{what}: {str(error).removeprefix('prompts: ')}") from error
    ids = [str(row[layout.id]) for row in rows] if layout.id and all(layout.id in row for row in rows) else []
    if len(set(ids)) < len(rows):
        ids = [str(number) for number in range(len(rows))]
    used = {layout.prompt, layout.id, "categories", "nouns", *columns.values(), *_INDEX_COLUMNS}
    return [
        PromptRecord(
            id=prefix + id,
            prompt=row[layout.prompt],
            seed=default.seed if own.seed is None else own.seed,
            guidance=own.guidance,
            width=own.width,
            height=own.height,
            categories=_words(what, number, row.get("categories")),
            nouns=_words(what, number, row.get("nouns")),
            labels={key: _label(value) for key, value in row.items() if key not in used},
        )
        for number, (id, row, own) in enumerate(zip(ids, rows, settings, strict=True))
    ]


def _words(what: str, number: int, value: typing.Any) -> tuple[str, ...]:
    """Return a list of words, which a text separates by commas."""
    words = value.split(",") if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{what}: categories and nouns of row {number} must be lists of texts")
    return tuple(stripped for word in words if (stripped := word.strip()))


def _label(value: typing.Any) -> str:
    return "" if value is None else str(value)
