"""The train step of a run compiled for one mesh: its memory, time and collectives as XLA estimates them."""

import dataclasses
import re
import typing
from collections import Counter

import jax
import jax.numpy as jnp

from revelio_jax.planning import hlo
from revelio_jax.planning.chips import Chip
from revelio_jax.planning.work import StepWork
from revelio_jax.sae import sharding
from revelio_jax.sae.aux_k import SCOPE, outer_branches
from revelio_jax.training.step import abstract_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Bytes and seconds of one chip by XLA. A step that XLA refuses has only memory; GPUs have no seconds."""

    memory: dict[str, float]
    seconds: float | None = None
    seconds_dead: float | None = None  # with many dead latents
    collectives: Counter[hlo.Collective] = dataclasses.field(default_factory=Counter[hlo.Collective])

    @property
    def bytes(self) -> float:
        """Bytes of memory."""
        return sum(self.memory.values())


def compile_mesh(work: StepWork, mesh: jax.sharding.Mesh, chip: Chip) -> Compiled:
    """Compile the train step for one mesh and return XLA's memory and cost."""
    try:
        compiled = compile_step(work, mesh)
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"([\d.]+)([MGT])\b", str(error))
        if "RESOURCE_EXHAUSTED" not in str(error) or not used:
            raise
        return Compiled({"refused": float(used[1]) * 2.0 ** {"M": 20, "G": 30, "T": 40}[used[2]]})
    memory: typing.Any = compiled.memory_analysis()
    parts = {
        "arguments": memory.argument_size_in_bytes,
        "other results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    text = compiled.as_text() or ""
    seconds, seconds_dead = (estimated_seconds(text, mesh.size, chip, scope) for scope in ("", SCOPE))
    return Compiled(parts, seconds, seconds_dead, hlo.cost(text, mesh.size).collectives)


def estimated_seconds(text: str, devices: int, chip: Chip, costly_scope: str = "") -> float | None:
    """Return the seconds of a program by XLA's cycles and published rates, or None for a GPU; see :func:`hlo.cost`."""
    if chip.clock is None:
        return None
    cost = hlo.cost(text, devices, costly_scope)
    return cost.cycles / chip.clock + cost.moved / chip.bytes_s + cost.sent / chip.sent_s


def compile_step(work: StepWork, mesh: jax.sharding.Mesh) -> jax.stages.Compiled:
    """Compile the train step for the devices of a mesh.

    Of AuxK's branches only the first and the last are compiled: without dead latents, and with many, which costs
    most. The branches between take most of the time to compile.
    """
    sae, options = work.config.sae, work.config.train
    state = abstract_state(work.latents, work.d, sae, options, mesh)
    place = jax.sharding.NamedSharding(mesh, sharding.HOST_BATCH)
    x_BD = jax.ShapeDtypeStruct((options.batch_size, work.d), jnp.float32, sharding=place)
    with outer_branches():
        lowered = make_train_step(sae, options, mesh).lower(state, x_BD)
    return lowered.compile()
