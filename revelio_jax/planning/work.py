"""The run to plan: a config with the width of its hook point and its dictionary size."""

import contextlib
import dataclasses

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.planning.widths import known_width
from revelio_jax.store import open_store
from revelio_jax.training.run import dictionary_size


@dataclasses.dataclass(frozen=True)
class StepWork:
    """The run to plan: an SAE with ``latents`` latents at a hook point of width ``d``."""

    config: Config
    site: str
    d: int
    latents: int
    rows: int | None  # rows of the store, None without a store


def describe_work(config: Config, width: int) -> StepWork:
    """Return the run to plan. ``width`` 0: look it up in the store, the model's folder or a table of hub models.

    Raise InputError if the width is negative or unknown, or if the width does not fit config.sae.
    """
    site = config.data.site or next(iter(config.extract.sites), "")
    if width < 0:
        raise InputError(f"--width is {width}; it must be at least 1, or 0 to look it up")
    d, rows = width or None, None
    store = None
    with contextlib.suppress(InputError):  # not extracted yet
        store = open_store(config.extract.store) if config.extract.store and not d else None
    if store:
        stored = store.site(config.data.site)
        site, d, rows = stored.name, stored.d, stored.rows
    d = d or known_width(config.model.id, config.model.family, site)
    if not d:
        raise InputError(
            f"the width of hook point {site!r} of {config.model.id!r} is unknown; pass --width N, "
            "or extract the store of config.extract.store first"
        )
    return StepWork(config, site, d, dictionary_size(config, d), rows)
