"""JSON and safetensors from people one does not know: whatever they hold, only InputError comes out.

Nothing else is ever opened, no name of a file is taken from inside one, and what a file says of itself
is checked before its tensors take memory.
"""

import contextlib
import json
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping

import torch
from safetensors import SafetensorError, safe_open

from revelio_jax.errors import InputError

FLOATS = ("F64", "F32", "F16", "BF16")  # as safetensors calls them
INTEGERS = ("I64", "I32")
MOST_JSON = 1 << 20  # bytes; both what people write and what fits a screen are far below
Shape = tuple[int | None, ...]
"""None stands for any size but 0."""


def read_json(path: pathlib.Path) -> dict[str, typing.Any]:
    """The object in a JSON file. Raises InputError where it is none, is too large or says a thing twice."""
    try:
        if (size := path.stat().st_size) > MOST_JSON:
            raise InputError(f"{path}: {size:,} bytes of JSON; at most {MOST_JSON:,} are read")
        found = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_no_constant)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no JSON object")
    return found


def read_header(path: pathlib.Path) -> tuple[dict[str, str], dict[str, tuple[str, list[int]]]]:
    """What a safetensors file says of itself: its metadata, and dtype and shape of each tensor."""
    with _readable(path):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > MOST_JSON:
            raise InputError(f"{path} cannot be read: it claims a header of {size:,} bytes")
        with safe_open(path, "np") as file:  # torch would reserve memory for all of the file
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            held = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
            return file.metadata() or {}, held


def read_tensors(
    path: pathlib.Path,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, Iterable[str]] | None = None,
    why: str = "expected is",
) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file that ``shapes`` names, finite, on the CPU; no others are read.

    ``dtypes`` has those that are allowed, FLOATS where it says nothing. Floating point comes as float32.
    """
    _, held = read_header(path)
    for name, wanted in shapes.items():
        if name not in held:
            raise InputError(f"{path}: tensor {name} is missing")
        allowed = tuple((dtypes or {}).get(name, FLOATS))
        _check(path, name, *held[name], allowed, wanted, why)
    with _readable(path), safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in shapes}
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor = tensor.float()
            if not tensor.isfinite().all():
                raise InputError(f"{path}: {one_line(name)} has values that are not finite in float32")
    return tensors


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Iterator[None]:
    """What the libraries raise in the block, as an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def inside(folder: pathlib.Path, path: pathlib.Path) -> bool:
    """Whether a file is in ``folder`` whatever links there are; the hub's cache links to its own blobs."""
    homes = [folder.resolve()]
    homes += [home.parent / "blobs" for home in homes[0].parents if home.name == "snapshots"]
    return any(path.resolve().is_relative_to(home) for home in homes)


def one_line(value: object, most: int = 120) -> str:
    """What a stranger wrote, fit to be shown: one line, not long."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(str(value).split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _check(
    path: pathlib.Path,
    name: str,
    dtype: str,
    shape: list[int],
    dtypes: tuple[str, ...],
    wanted: Shape,
    why: str,
) -> None:
    fits = len(shape) == len(wanted) and all(n > 0 if m is None else n == m for n, m in zip(shape, wanted, strict=True))
    if not fits or dtype not in dtypes:
        sizes = ", ".join("any" if n is None else str(n) for n in wanted)
        raise InputError(
            f"{path}: {one_line(name)} is {dtype} {one_line(shape)}; {why} {' or '.join(dtypes)} [{sizes}]"
        )


def _once(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(name: str) -> typing.NoReturn:
    raise ValueError(f"{name} is no number of JSON")
