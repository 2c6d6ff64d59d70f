"""python -m revelio_jax.interpret.granularity: see :mod:`revelio_jax.interpret.granularity.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.interpret.granularity import command

with report_errors():
    command.main(sys.argv[1:])
