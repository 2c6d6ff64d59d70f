"""Check a configuration and freeze it."""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping

import ml_collections

from revelio_jax.config import renamed
from revelio_jax.config.analysis import InterpretConfig, SteerConfig, TagsConfig
from revelio_jax.config.benchmark import BenchmarkConfig
from revelio_jax.config.extraction import ExtractConfig, ModelConfig
from revelio_jax.config.fields import field
from revelio_jax.config.training import DataConfig, LoggingConfig, MeshConfig, SaeConfig, TrainConfig
from revelio_jax.errors import InputError

TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "yes or no"}
PLURALS = {str: "texts", int: "whole numbers", float: "numbers"}
T = typing.TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration that every command reads, checked and frozen."""

    run: str | None = field(None, "folder of the run: config, checkpoints, metrics, export, report")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    extract: ExtractConfig = dataclasses.field(default_factory=ExtractConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    sae: SaeConfig = dataclasses.field(default_factory=SaeConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    steer: SteerConfig = dataclasses.field(default_factory=SteerConfig)
    benchmark: BenchmarkConfig = dataclasses.field(default_factory=BenchmarkConfig)
    interpret: InterpretConfig = dataclasses.field(default_factory=InterpretConfig)
    tags: TagsConfig = dataclasses.field(default_factory=TagsConfig)

    def __post_init__(self):
        """Raise InputError if the run is neither a local folder nor on object storage."""
        if self.run and "://" in self.run and not self.run.startswith(("gs://", "s3://")):
            raise InputError(f"config.run is {self.run!r}; it must be a local folder, gs:// or s3://")

    def to_json(self) -> str:
        """Return the configuration as JSON text, which ``--config`` reads back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


SECTIONS: dict[str, type[typing.Any]] = {
    name: hint for name, hint in typing.get_type_hints(Config).items() if name != "run"
}


def default() -> typing.Any:
    """Return a ConfigDict with the default of every field, which a config file changes.

    Its declared type is Any, because ml_collections declares the type of every field as a union of many types.
    :func:`resolve` checks the fields.
    """
    return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def resolve(config: Mapping[str, typing.Any] | ml_collections.ConfigDict) -> Config:
    """Check every field of a ConfigDict (or nested dict) and freeze it.

    Missing fields get their defaults. Raise InputError with the field, its value and the allowed values.
    """
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    values = {}
    for name, value in config.items():
        if name in SECTIONS:
            values[name] = _section(name, value)
        elif name == "run":
            values[name] = _checked("config.run", value, *field_spec("run"))
        else:
            raise InputError(unknown_field(name))
    return Config(**values)


def field_names() -> list[str]:
    """Return the dotted name of every field, for example train.steps."""
    sections = ((name, section) for name, section in SECTIONS.items())
    return [
        "run",
        *(f"{name}.{each.name}" for name, section in sections for each in dataclasses.fields(section)),
    ]


def field_spec(name: str) -> tuple[typing.Any, Mapping[str, typing.Any]]:
    """Return the type hint and the metadata of a field by its dotted name."""
    section, _, key = name.rpartition(".")
    owner = SECTIONS[section] if section else Config
    metadata = next(each.metadata for each in dataclasses.fields(owner) if each.name == key)
    return typing.get_type_hints(owner)[key], metadata


def unknown_field(name: str) -> str:
    """Return the message for a field or section that does not exist, by its dotted name."""
    if name in renamed.FIELDS:
        return f"config.{name} is now called config.{renamed.FIELDS[name]}"
    section, _, key = name.partition(".")
    if not key or section not in SECTIONS:
        return f"unknown config.{section}; config has: {', '.join(['run', *SECTIONS])}"
    keys = [each.name for each in dataclasses.fields(SECTIONS[section])]
    return f"unknown field config.{name}; {did_you_mean(key, keys)}"


def did_you_mean(key: str, keys: Iterable[str], plural: str = "fields") -> str:
    """Return advice with the closest of ``keys``, or with all of them; ``plural`` is the word for them."""
    keys = list(keys)
    close = difflib.get_close_matches(key, keys, 1)
    return f"did you mean {close[0]}?" if close else f"{plural}: {', '.join(keys)}"


def _section(name: str, section: typing.Any) -> typing.Any:
    if not isinstance(section, Mapping):
        raise InputError(f"config.{name} is {section!r}; it must be a section with fields")
    fields = {each.name for each in dataclasses.fields(SECTIONS[name])}
    for key in section:
        if key not in fields:
            raise InputError(unknown_field(f"{name}.{key}"))
    return check_fields(f"config.{name}", SECTIONS[name], section)


def check_fields(name: str, kind: type[T], values: Mapping[str, typing.Any]) -> T:
    """Return ``values`` as ``kind``, a dataclass whose fields :func:`field` declares; missing ones get their defaults.

    Raise InputError for an unknown or invalid field, which the message calls ``name.field``.
    """
    hints = typing.get_type_hints(kind)
    fields = {each.name: each for each in dataclasses.fields(typing.cast(typing.Any, kind))}
    for key in values:
        if key not in fields:
            raise InputError(f"unknown field {name}.{key}; {did_you_mean(key, fields)}")
    return kind(
        **{key: _checked(f"{name}.{key}", value, hints[key], fields[key].metadata) for key, value in values.items()}
    )


def is_optional(hint: typing.Any) -> bool:
    """Return whether the type hint of a field allows None."""
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def base_type(hint: typing.Any) -> typing.Any:
    """Return the type of a field's value without None; of a tuple, the type of its items."""
    if is_optional(hint):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return typing.get_args(hint)[0] if isinstance(hint, types.GenericAlias) else hint


def _checked(name: str, value: typing.Any, hint: typing.Any, metadata: Mapping[str, typing.Any]) -> typing.Any:
    kind = base_type(hint)
    if is_optional(hint) and (value is None or value == ""):
        return None
    for item in value if isinstance(value, list | tuple) else (value,):
        _check_item(name, item)
    if isinstance(hint, types.GenericAlias):  # tuple[str, ...]
        items = value if isinstance(value, list | tuple) else (value,)
        items = tuple(float(item) if kind is float and type(item) is int else item for item in items)
        if not all(type(item) is kind for item in items):
            raise InputError(f"{name} is {value!r}; it must be a tuple of {PLURALS[kind]}")
        return items
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise InputError(f"{name} is {value!r}; it must be {TYPE_NAMES[kind]}{' or None' if is_optional(hint) else ''}")
    choices, low, high = metadata["choices"], metadata["low"], metadata["high"]
    if choices and value not in choices:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(choices)}")
    if low is not None and not value >= low:  # also refuses NaN
        raise InputError(f"{name} is {value}; it must be at least {low}")
    if high is not None and value > high:
        raise InputError(f"{name} is {value}; it must be at most {high}")
    if metadata["multiple"] > 1 and value % metadata["multiple"]:
        raise InputError(f"{name} is {value}; it must be a multiple of {metadata['multiple']}")
    return value


def _check_item(name: str, item: typing.Any) -> None:
    """Raise InputError for a value that no field allows.

    Libraries in C refuse larger whole numbers, files cannot hold other texts or be named by them, and JSON has no other
    numbers.
    """
    if isinstance(item, int) and item.bit_length() > 63:
        shown = str(item) if item.bit_length() <= 128 else f"a whole number of {item.bit_length()} bits"
        limit = f"at most {2**63 - 1}" if item > 0 else f"at least {1 - 2**63}"
        raise InputError(f"{name} is {shown}; it must be {limit}")
    if isinstance(item, float) and not math.isfinite(item):
        raise InputError(f"{name} is {item}; it must be a finite number")
    if isinstance(item, str) and not _is_writable(item):
        raise InputError(f"{name} is {item[:80]!r}; it must be valid Unicode without the character NUL")


def _is_writable(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
