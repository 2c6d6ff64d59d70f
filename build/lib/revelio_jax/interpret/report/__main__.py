"""python -m revelio_jax.interpret.report: see :mod:`revelio_jax.interpret.report.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.interpret.report import command

with reported():
    command.main(sys.argv[1:])
