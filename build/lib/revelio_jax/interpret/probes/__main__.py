"""python -m revelio_jax.interpret.probes: see :mod:`revelio_jax.interpret.probes.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.interpret.probes import command

with reported():
    command.main(sys.argv[1:])
