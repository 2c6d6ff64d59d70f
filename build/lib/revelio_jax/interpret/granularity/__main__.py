"""python -m revelio_jax.interpret.granularity: see :mod:`revelio_jax.interpret.granularity.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.interpret.granularity import command

with reported():
    command.main(sys.argv[1:])
