"""python -m revelio_jax.interpret.probes: see :mod:`revelio_jax.interpret.probes.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.interpret.probes import command

with report_errors():
    command.main(sys.argv[1:])
