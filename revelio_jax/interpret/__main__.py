"""python -m revelio_jax.interpret: see :mod:`revelio_jax.interpret.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.interpret import command

with report_errors():
    command.main(sys.argv[1:])
