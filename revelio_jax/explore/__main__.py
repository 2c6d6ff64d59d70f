"""Run ``python -m revelio_jax.explore``, see :mod:`revelio_jax.explore.command`."""

import sys

from revelio_jax.errors import report_errors
from revelio_jax.explore import command

if __name__ == "__main__":
    with report_errors():
        command.main(sys.argv[1:])
