"""python -m revelio_jax.interpret.tags: see :mod:`revelio_jax.interpret.tags.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.interpret.tags import command

with reported():
    command.main(sys.argv[1:])
