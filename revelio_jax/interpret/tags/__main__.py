"""python -m revelio_jax.interpret.tags: see :mod:`revelio_jax.interpret.tags.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.interpret.tags import command

with report_errors():
    command.main(sys.argv[1:])
