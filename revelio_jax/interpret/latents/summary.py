"""The contents of summary.json: settings and totals of a run's results. See :mod:`.results` for the other files."""

import typing


class StoreReference(typing.TypedDict):
    """The store whose rows were read."""

    location: str
    fingerprint: str


class SaeReference(typing.TypedDict):
    """The interpreted SAE. For neurons, ``folder`` is "" and the other two fields are "neurons".

    For a random dictionary, ``folder`` is "" and ``architecture`` is "random".
    """

    folder: str
    sha256: str  # of the file of weights
    architecture: str  # SAELens's name


class StratumColumn(typing.TypedDict):
    """The column that separates strata: "timestep" or a sample column. Without strata ``values`` is empty."""

    column: str
    values: list[str]


class MeanOverLatents(typing.TypedDict):
    """A mean over latents with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    latents: int


class MeasureMean(typing.TypedDict):
    """The mean of a measure over latents; None: measured on no latent, or without a value by chance."""

    measured: MeanOverLatents | None
    chance: float | None


class LabelPurity(typing.TypedDict):
    """The purity of a label, by the measures sigma, entropy and purity."""

    classes: int
    samples: int  # number of samples with a class
    strongest: int  # number of top samples measured per latent
    measured: dict[str, MeanOverLatents | None]  # None: no latent fires on enough labeled samples
    chance: dict[str, float] | None  # expected for random samples; None: too few labeled samples
    chance_of_strata: list[dict[str, float] | None]  # in the order of the strata


class Identity(typing.TypedDict):
    """The settings that determine the results. Equal identities allow results to be reused."""

    site: str
    store: StoreReference
    sae: SaeReference
    fields: dict[str, typing.Any]  # the fields of config.interpret that affect the results
    embedder: str  # fingerprint of the model config.interpret.embedder, "" without one


class Origin(typing.TypedDict):
    """The run, the model, and the images of the store. They can change without changing the results."""

    name: str  # of the run
    model: str | None
    family: str
    mode: str  # of extraction
    images: str  # folder of the images of the samples, "" without images


class Summary(Identity, Origin):
    """Everything in summary.json."""

    version: typing.NotRequired[int]  # of the files; set when they are written
    files: typing.NotRequired[dict[str, str]]  # sha256 of the other files except tags.parquet
    seconds: float  # duration of the pass over the store
    timesteps: list[int]
    d: int  # width
    latents: int
    k: int | None  # None: any number of latents can fire on a row
    rows: int
    samples: int
    kind: str  # "text" or "image"
    tokens: str | None  # sample column with the tokens, for example clip.tokens; None for images
    positions: int  # largest number of positions of a sample
    grid: tuple[int, int] | None  # height and width of the positions; None if they do not form a map
    cells: tuple[int, int]  # height and width of a profile after maxima, or (1, cells)
    stratum: StratumColumn
    labels: list[str]  # sample columns whose purity was measured
    purity: dict[str, LabelPurity]  # by label
    measures: dict[str, MeasureMean]  # by name, see measured.py
    top: int  # largest number of top samples per latent
    weaker: int  # largest number of weaker samples per latent
    neighbors: int  # largest number of neighbors of each kind per latent
    histogram_log2_edges: list[float]  # [bins + 1]
