"""python -m revelio_jax COMMAND: the same as the console script ``revelio COMMAND``."""

import sys

from revelio_jax.commands import main

if __name__ == "__main__":
    main(sys.argv[1:], "python -m revelio_jax")
