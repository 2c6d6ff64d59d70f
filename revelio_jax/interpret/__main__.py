"""python -m revelio_jax.interpret: see :mod:`revelio_jax.interpret.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.interpret import command

with reported():
    command.main(sys.argv[1:])
