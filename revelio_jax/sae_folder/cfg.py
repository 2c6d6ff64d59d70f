"""The contents of cfg.json in an SAE folder."""

import typing


class TrainedPoint(typing.TypedDict):
    """A hook point that an SAE was trained on."""

    name: str
    width: int


class Activations(typing.TypedDict):
    """The rows that an SAE was trained on."""

    count: int
    mean_norm: float
    squared_deviation: float


class Normalization(typing.TypedDict):
    """The rule and the scale of the normalization, which is folded into the tensors."""

    rule: str
    scale: float


class TrainedStore(typing.TypedDict):
    """A store that an SAE was trained on, and its share of the rows of a batch."""

    fingerprint: str
    share: float


class Training(typing.TypedDict):
    """The settings of a training run."""

    steps: int
    rows: int
    learning_rate: float
    batch_size: int
    seed: int


class SaeMetadata(typing.TypedDict, total=False):
    """The fields of steering and of the model card. Any may be missing: another library may have written the file."""

    model_id: str | None
    revision: str
    family: str
    site: str  # the hook point, or several joined by +
    sites: list[TrainedPoint]
    value: str  # output, or difference from the input
    positions: str
    architecture: str  # of config.sae
    k: int
    activations: Activations
    normalization: Normalization
    dead_threshold: float
    stores: list[TrainedStore]
    training: Training
    evaluation: dict[str, float] | None
    versions: dict[str, str]
    sae_lens_version: str
    sae_lens_training_version: str | None
    format_version: int


class TopkFields(typing.TypedDict, total=False):
    """The fields that only topk has."""

    k: int | None
    rescale_acts_by_decoder_norm: bool


class Cfg(TopkFields):
    """cfg.json in the layout of SAELens."""

    architecture: str
    d_in: int
    d_sae: int
    dtype: str
    device: str
    apply_b_dec_to_input: bool
    normalize_activations: str
    reshape_activations: str
    metadata: SaeMetadata
