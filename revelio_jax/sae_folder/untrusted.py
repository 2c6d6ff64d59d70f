"""Read untrusted JSON and safetensors files; anything malformed raises InputError.

No other format is opened, and no file name is read from a file. Dtypes and shapes in a header are checked before
memory for tensors is allocated.
"""

import contextlib
import pathlib
import typing
from collections.abc import Generator, Iterable, Mapping

# Registers bfloat16 with numpy, which safetensors then uses.
import ml_dtypes  # noqa: F401  # pyright: ignore[reportUnusedImport]
import numpy as np
from safetensors import SafetensorError, safe_open

from revelio_jax import checksums, json_text
from revelio_jax.errors import InputError

FLOATS = ("F64", "F32", "F16", "BF16")  # names of dtypes in a safetensors header
INTEGERS = ("I64", "I32")
LARGEST_JSON = 1 << 20  # bytes of a JSON file or of a header
Shape = tuple[int | None, ...]
"""Sizes of a tensor's axes; None allows any size but 0."""


def read_json(path: pathlib.Path) -> dict[str, typing.Any]:
    """Return the object in a JSON file.

    Raise InputError if the file is missing or too large, is not JSON, is not an object, or repeats a name.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_JSON:
            raise InputError(f"{path} has {size:,} bytes of JSON; it must have at most {LARGEST_JSON:,}")
        return json_text.parse_object(path.read_bytes())
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON: {one_line(error)}") from error


def read_header(path: pathlib.Path) -> tuple[dict[str, str], dict[str, tuple[str, list[int]]]]:
    """Return the metadata of a safetensors file, and dtype and shape of each tensor by name.

    Raise InputError if the file cannot be read or is malformed.
    """
    with _readable(path):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_JSON:
            raise InputError(f"{path} cannot be read: its header claims {size:,} bytes")
        with safe_open(path, "np") as file:  # the torch mode reserves memory for the whole file
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
            return file.metadata() or {}, tensors


def read_tensors(
    path: pathlib.Path,
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, Iterable[str]] | None = None,
    required_by: str = "allowed:",
) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file that ``shapes`` names.

    Floating-point tensors are converted to float32 and must be finite. ``dtypes`` holds the allowed dtypes by name;
    the default is FLOATS. ``required_by`` introduces the allowed dtypes and shape in messages. Raise InputError if a
    tensor is missing, has another shape or dtype, or is not finite, or if the file has a checksum of its tensors that
    does not match.
    """
    metadata, header = read_header(path)
    for name, shape in shapes.items():
        if name not in header:
            raise InputError(f"{path}: tensor {name} is missing")
        _check(path, name, *header[name], tuple((dtypes or {}).get(name, FLOATS)), shape, required_by)
    with _readable(path), safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in shapes}
    expected = metadata.get(checksums.TENSORS)
    if expected and set(shapes) == set(header) and expected != checksums.of_tensors(tensors):
        raise InputError(f"{path} is damaged: its tensors do not match their checksum; write the file again")
    for name in tensors:
        if header[name][0] in FLOATS:
            with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused below
                tensors[name] = tensors[name].astype(np.float32, copy=False)
            if not np.isfinite(tensors[name]).all():
                raise InputError(f"{path}: {one_line(name)} has values that are not finite in float32")
    return tensors


@contextlib.contextmanager
def _readable(path: pathlib.Path) -> Generator[None]:
    """Turn the errors of safetensors and of the system into an InputError of one line."""
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error


def inside(folder: pathlib.Path, path: pathlib.Path) -> bool:
    """Return whether a file lies in ``folder`` after links are followed; blobs of the hub's cache count as inside."""
    homes = [folder.resolve()]
    homes += [home.parent / "blobs" for home in homes[0].parents if home.name == "snapshots"]
    return any(path.resolve().is_relative_to(home) for home in homes)


def one_line(value: object, most: int = 120) -> str:
    """Return untrusted text as one printable line of at most ``most`` characters."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(str(value).split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _check(
    path: pathlib.Path,
    name: str,
    dtype: str,
    shape: list[int],
    dtypes: tuple[str, ...],
    allowed: Shape,
    required_by: str,
) -> None:
    fits = len(shape) == len(allowed) and all(
        n > 0 if m is None else n == m for n, m in zip(shape, allowed, strict=True)
    )
    if not fits or dtype not in dtypes:
        sizes = ", ".join("any" if n is None else str(n) for n in allowed)
        raise InputError(
            f"{path}: {one_line(name)} is {dtype} {one_line(shape)}; {required_by} {' or '.join(dtypes)} [{sizes}]"
        )
