"""Run ``python -m revelio_jax.explore``, see :mod:`revelio_jax.explore.command`."""

import sys

from revelio_jax.errors import reported
from revelio_jax.explore import command

if __name__ == "__main__":
    with reported():
        command.main(sys.argv[1:])
