"""python -m revelio_jax.interpret.report: see :mod:`revelio_jax.interpret.report.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.interpret.report import command

with report_errors():
    command.main(sys.argv[1:])
