"""The train step of a run compiled for one mesh: its memory, time and collectives as XLA estimates them."""

import contextlib
import dataclasses
import math
import re
import typing
from collections import Counter

import jax
import jax.numpy as jnp

from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.planning import hlo
from revelio_jax.planning.chips import Chip
from revelio_jax.planning.widths import known_width
from revelio_jax.sae import sharding
from revelio_jax.store import open_store
from revelio_jax.training.run import dictionary_size
from revelio_jax.training.step import abstract_state, make_train_step


@dataclasses.dataclass(frozen=True)
class StepWork:
    """The run to plan: an SAE with ``latents`` latents at a hook point of width ``d``."""

    config: Config
    site: str
    d: int
    latents: int
    rows: int | None  # rows of the store, None without a store


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes and seconds per chip of the train step on one mesh; only memory if the mesh does not fit."""

    mesh: tuple[int, int]
    memory: float
    fits: bool
    parts: dict[str, int] = dataclasses.field(default_factory=dict)
    seconds: float = math.inf
    seconds_dead: float = math.inf
    roofs: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: Counter = dataclasses.field(default_factory=Counter)

    def hours(self, steps: int) -> float:
        """Return the hours of a run of ``steps`` steps."""
        return self.seconds * steps / 3600


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


def compile_step(work: StepWork, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Compile the train step for the devices of a mesh."""
    sae, options = work.config.sae, work.config.train
    state = abstract_state(work.latents, work.d, sae, options, mesh)
    place = jax.sharding.NamedSharding(mesh, sharding.BATCH)
    x_BD = jax.ShapeDtypeStruct((options.batch_size, work.d), jnp.float32, sharding=place)
    return make_train_step(sae, options, mesh).lower(state, x_BD).compile()


def plan_mesh(work: StepWork, mesh: jax.sharding.Mesh, chip: Chip) -> Plan:
    """Compile the train step for one mesh and return XLA's memory and cost."""
    data, feature = mesh.devices.shape
    try:
        compiled = compile_step(work, mesh)
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"([\d.]+)([MGT])\b", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        return Plan((data, feature), float(used[1]) * 2.0 ** {"M": 20, "G": 30, "T": 40}[used[2]], False)
    memory: typing.Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "other results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    least, most = (hlo.cost(text, mesh.size, branch) for branch in (min, max))

    def seconds(cost: hlo.Cost) -> float:
        return cost.cycles / chip.clock + cost.moved / chip.bytes_s + cost.sent / chip.sent_s

    rows, latents = work.config.train.batch_size / data, work.latents / feature
    sparse = 4 * work.config.sae.k / feature  # decode, and gradients of the code and of both matrices
    roofs = {
        "compute": 2 * rows * work.d * (latents + sparse) / chip.flops_s,
        "HBM": (memory.argument_size_in_bytes + memory.output_size_in_bytes) / chip.bytes_s,
        "links": least.sent / chip.sent_s,
    }
    total = sum(parts.values())
    return Plan(
        (data, feature),
        total,
        total <= chip.hbm,
        parts,
        seconds(least),
        seconds(most),
        roofs,
        least.collectives,
    )
