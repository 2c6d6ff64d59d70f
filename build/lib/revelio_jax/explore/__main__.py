"""python -m revelio_jax.explore: see :mod:`revelio_jax.explore.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.explore import command

with reported():
    command.main(sys.argv[1:])
