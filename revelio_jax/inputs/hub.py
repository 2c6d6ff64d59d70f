"""Read datasets with the package datasets, and files of datasets on the Hugging Face hub."""

import contextlib
import pathlib
import re
import types
import typing
from collections.abc import Generator

from revelio_jax.errors import InputError, require, single_line

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""The name owner/name of a dataset."""
_HUB_FILE = re.compile(r"hf://datasets/(?P<id>[\w-][\w.-]*/[\w.-]+?)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")


def import_datasets(user: str) -> types.ModuleType:
    """Import the package datasets without its progress bars and log lines.

    ``user`` is the setting that needs it. Raise InputError if it is not installed.
    """
    require("datasets", "datasets", user)
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the InputError of one_line_errors repeats its messages
    return datasets


@contextlib.contextmanager
def one_line_errors(what: str) -> Generator[None]:
    """Turn the errors of a loader in the block into an InputError about ``what``.

    Network, login, a broken file, a missing split: each raises an exception of its own class.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}: {single_line(str(error))[:200]}") from error


def dataset_rows(what: str, name: str, split: str) -> list[dict[str, typing.Any]]:
    """Return all rows of the dataset ``owner/name``. Raise InputError if it cannot be loaded."""
    datasets = import_datasets(what)
    with one_line_errors(what):
        return datasets.load_dataset(name, split=split).to_list()


def is_hub_file(location: str) -> bool:
    """Return whether a location is a file on the hub, hf://datasets/owner/name/file."""
    return location.startswith("hf://")


def download_file(what: str, location: str) -> pathlib.Path:
    """Return the local copy of ``hf://datasets/owner/name/file``, which is downloaded unless the cache has it.

    ``owner/name@revision`` selects a revision. Raise InputError if the location is malformed or the download fails.
    """
    parts = _HUB_FILE.fullmatch(location)
    if not parts:
        raise InputError(f"{what}: the address of a file on the hub must be hf://datasets/owner/name/file")
    require("huggingface_hub", "steer", what)
    import huggingface_hub

    with one_line_errors(what):
        return pathlib.Path(
            huggingface_hub.hf_hub_download(parts["id"], parts["file"], repo_type="dataset", revision=parts["revision"])
        )
