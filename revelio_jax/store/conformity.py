"""Compare JSON from a store with the types in :mod:`.json_files`, because others may have written or changed it."""

import types
import typing

from revelio_jax.errors import InputError
from revelio_jax.store.json_files import Header, Manifest, Plan, SiteEntry, SiteShape

NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
LARGEST_CHUNK = 1 << 32  # bytes in float32 of one inner chunk, which a reader holds in memory


def check_type(value: typing.Any, hint: typing.Any, where: str) -> None:
    """Raise InputError if a value is not of the type ``hint``: a TypedDict, list[T], dict[str, T] or a plain type.

    ``where`` is the name of the value in the message. Objects may have more names than their TypedDict.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return
        check_type(value, next(kind for kind in arguments if kind is not type(None)), where)
    elif typing.is_typeddict(hint):
        _check_kind(value, dict, "an object", where)
        for name, kind in typing.get_type_hints(hint).items():  # without NotRequired
            if name in value:
                check_type(value[name], kind, f"{where}.{name}")
            elif name in hint.__required_keys__:
                raise InputError(f"{where}.{name} is missing")
    elif origin is list:
        _check_kind(value, list, "a list", where)
        for item in value:
            check_type(item, arguments[0], where)
    elif origin is dict:
        _check_kind(value, dict, "an object", where)
        for name, item in value.items():
            check_type(item, arguments[1], f"{where}.{name}")
    elif hint is float:
        _check_kind(value, (int, float), NAMES[float], where)
    elif hint is not typing.Any:
        _check_kind(value, hint, NAMES[hint], where)


def check_plan(plan: dict[str, typing.Any], where: str) -> None:
    """Raise InputError if a field of a plan has the wrong type or is out of range."""
    check_type(plan, Plan, where)
    _check_header(typing.cast(Plan, plan), where)
    for name, site in plan["sites"].items():
        _check_shape(site, _shards(plan), plan["chunk_rows"], f"{where}.sites.{name}")


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raise InputError if a field of a manifest has the wrong type, or if its numbers contradict each other.

    Reading a store then needs at most the memory of its chunks, whatever the manifest says.
    """
    check_type(manifest, Manifest, where)
    _check_header(manifest, where)
    if not manifest["sites"]:
        raise InputError(f"{where}.sites is empty")
    for name, site in manifest["sites"].items():
        _check_shape(site, _shards(manifest), manifest["chunk_rows"], f"{where}.sites.{name}")
        _check_site(site, _shards(manifest), f"{where}.sites.{name}")


def _check_header(header: Header, where: str) -> None:
    _check_range(f"{where}.chunk_rows", header["chunk_rows"], 1, 1 << 31)
    _check_range(f"{where}.shard_samples", header["shard_samples"], 1, 1 << 62)
    _check_range(f"{where}.samples", header["samples"], 1, 1 << 31)  # sample numbers are int32


def _shards(header: typing.Any) -> int:
    return -(-header["samples"] // header["shard_samples"])


def _check_shape(site: SiteShape, shards: int, chunk_rows: int, where: str) -> None:
    _check_range(f"{where}.d", site["d"], 1, LARGEST_CHUNK // (4 * chunk_rows))
    _check_range(f"{where}.shard_rows", site["shard_rows"], 1, (1 << 62) // shards)
    if len(site["expected_rows"]) != shards:
        raise InputError(f"{where}.expected_rows has {len(site['expected_rows'])} values; it must have {shards}")
    for count in site["expected_rows"]:
        _check_range(f"{where}.expected_rows", count, 0, site["shard_rows"])


def _check_site(site: SiteEntry, shards: int, where: str) -> None:
    for count in site["shard_valid_rows"]:
        _check_range(f"{where}.shard_valid_rows", count, 0, site["shard_rows"])
    lengths = {"shard_valid_rows": shards, "mean": site["d"], "variance": site["d"]}
    for name, length in lengths.items():
        if len(site[name]) != length:
            raise InputError(f"{where}.{name} has {len(site[name])} values; it must have {length}")
    if site["rows"] != sum(site["shard_valid_rows"]):
        raise InputError(f"{where}.rows is {site['rows']}; its shards have {sum(site['shard_valid_rows'])}")


def _check_kind(value: typing.Any, kind: type | tuple[type, ...], name: str, where: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{where} is {str(value)[:40]!r}; it must be {name}")


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {str(value)[:40]}; it must be {low} to {high}")
