"""The types of a store's JSON files: plan.json, manifest.json and the markers in shards/."""

import typing


class ModelRecord(typing.TypedDict, total=False):
    """The model whose activations were recorded."""

    id: str | None
    revision: str
    family: str
    dtype: str
    device: str
    fingerprint: str  # of the weights and their configs
    compile: bool  # only if True
    pipeline: str  # its class; only of a pipeline that the caller built
    scheduler: dict[str, typing.Any]  # its config; only of stores of a denoiser


class Provenance(typing.TypedDict, total=False):
    """The model, the settings and the inputs that determine the rows of a store."""

    model: ModelRecord
    extract: dict[str, typing.Any]  # the fields of config.extract that the mode uses
    input: dict[str, str]  # fingerprints of samples, tokens and images


class Header(Provenance):
    """The fields that plan.json and manifest.json share."""

    format_version: int
    dtype: str
    chunk_rows: int
    shard_samples: int
    samples: int


class SiteShape(typing.TypedDict):
    """A hook point in plan.json."""

    d: int
    shard_rows: int  # array rows reserved per shard
    expected_rows: list[int]  # of each shard, before any is dropped


class PlanIdentity(Header):
    """The part of plan.json that two runs must share to write one store."""

    sites: dict[str, SiteShape]


class Plan(PlanIdentity):
    """plan.json. ``fingerprint`` is the sha256 of its :class:`PlanIdentity`."""

    fingerprint: str
    notes: typing.NotRequired[dict[str, typing.Any]]  # for example versions of libraries


class StatisticsEntry(typing.TypedDict):
    """Statistics of rows: ``mean`` and ``m2`` are float64 [d] in base64."""

    count: int
    mean: str
    m2: str


class SiteMarker(StatisticsEntry):
    """A hook point in the marker of a shard."""

    dropped: int
    skipped: typing.NotRequired[list[int]]  # samples that could not be read
    batch_size: typing.NotRequired[int]  # samples per forward pass


Marker = dict[str, SiteMarker]


class SiteTotals(typing.TypedDict):
    """The totals of a hook point over all shards."""

    rows: int
    dropped: int
    skipped: typing.NotRequired[list[int]]  # absent if no sample was skipped
    shard_valid_rows: list[int]
    mean: list[float]
    variance: list[float]


class SiteEntry(SiteShape, SiteTotals):
    """A hook point in manifest.json."""


class Manifest(Header):
    """manifest.json."""

    sites: dict[str, SiteEntry]
    batch_sizes: typing.NotRequired[list[int]]  # of all shards; rows of several may differ in their last bits
    fingerprint: str
    notes: typing.NotRequired[dict[str, typing.Any]]
