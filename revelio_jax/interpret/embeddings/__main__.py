"""python -m revelio_jax.interpret.embeddings: see :mod:`revelio_jax.interpret.embeddings.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.interpret.embeddings import command

with report_errors():
    command.main(sys.argv[1:])
