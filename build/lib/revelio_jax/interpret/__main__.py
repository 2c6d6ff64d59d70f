"""python -m revelio_jax.interpret: see :mod:`revelio_jax.interpret.latents.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.interpret.latents import command

with reported():
    command.main(sys.argv[1:])
