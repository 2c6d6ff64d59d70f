"""How a command says that its input is wrong: one line, exit status 2."""

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator


class InputError(ValueError):
    """What a person gave cannot be used; the message names field, value and what is allowed."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """End the process with one line on stderr: with status 2 on an InputError, 130 on Ctrl-C."""
    try:
        yield
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None


def require(package: str, extra: str, what: str) -> None:
    """Raise InputError where a package that ``what`` needs is not installed; ``extra`` brings it."""
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{what} needs the package {package}; pip install -e '.[{extra}]'")
