"""The command line that all commands share: ``--config``, overrides of its fields, and flags of the command.

``--config`` takes the name of a shipped config, a config file, or the ``config.json`` of a run.
``--config.train.steps=1000`` overrides a field. Lists are written as ``a,b``; an empty value unsets a field;
``1e4`` is a whole number; ``yes``, ``no``, ``true`` and ``false`` are booleans.
"""

import argparse
import ast
import contextlib
import contextvars
import decimal
import importlib.util
import pathlib
import re
import types
import typing
from collections.abc import Generator, Mapping, Sequence

import ml_collections

from revelio_jax import json_text, shipped
from revelio_jax.config import SECTIONS, Config, resolve, schema
from revelio_jax.errors import InputError

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


_program: contextvars.ContextVar[str | None] = contextvars.ContextVar("program", default=None)


@contextlib.contextmanager
def program_name(program: str) -> Generator[None]:
    """Set the name of the running command in help and messages; the default is ``python -m MODULE``."""
    token = _program.set(program)
    try:
        yield
    finally:
        _program.reset(token)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError and takes values that begin with a minus sign."""

    def __init__(self, command: str, doc: str | None):
        super().__init__(
            _program.get() or f"python -m {command}",
            description=(doc or "").strip(),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=36, width=110),
            allow_abbrev=False,
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse ``arguments``. Raise InputError for unknown flags and unexpected arguments."""
        namespace, rest = self.parse_known_args(self._joined(arguments))
        for argument in rest:
            if argument.startswith("--config."):
                raise InputError(schema.unknown_field(argument.removeprefix("--config.").partition("=")[0]))
            if argument.startswith("-"):
                raise InputError(f"unknown flag {argument.partition('=')[0]}; see {self.prog} --help")
            raise InputError(f"unexpected argument {argument!r}; see {self.prog} --help")
        return namespace

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def _print_message(self, message: str, file: typing.Any = None) -> None:
        """Print help. argparse would ignore that the reader is gone, and exit with status 0."""
        print(message, end="", file=file)

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """Write ``--flag value`` as ``--flag=value``: argparse would take the value -1,0 for a flag."""
        takes_value = {flag for action in self._actions if action.nargs is None for flag in action.option_strings}
        joined: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            value = next(rest, None) if argument in takes_value else None
            joined.append(argument if value is None else f"{argument}={value}")
        return joined


def parse(
    argv: Sequence[str], doc: str | None, **flags: tuple[typing.Any, str]
) -> tuple[Config, dict[str, typing.Any]]:
    """Read ``--config``, overrides of its fields and the command's own flags.

    ``argv`` is the command's module and its arguments. ``flags`` maps the name of each own flag to its default and
    its help. A flag has the type of its default; with the default None it is an optional text, and with a tuple it
    may be repeated. Return the checked config and the values of the own flags. ``--help`` prints every flag and exits
    with status 0. Raise InputError with the field or flag, its value and what is allowed.
    """
    parser = Parser(argv[0], doc)
    parser.usage = f"{parser.prog} --config NAME_OR_FILE [--flag value ...] [--config.section.field=value ...]"
    parser.add_argument(
        "--config", metavar="NAME_OR_FILE", help="a shipped config, a config file, or the config.json of a run"
    )
    for name, (value, help) in flags.items():
        _add_flag(parser, name, value, help)
    _add_fields(parser)
    texts = vars(parser.parse(argv[1:]))
    if not texts["config"]:
        raise InputError("--config is missing; for example --config mini_sd")
    values = load(texts["config"])
    for name in schema.field_names():
        if f"config.{name}" in texts:
            section, _, key = name.rpartition(".")
            part = values.setdefault(section, {}) if section else values
            part[key] = parse_value(f"config.{name}", texts[f"config.{name}"], schema.field_spec(name)[0])
    own = {
        name: _flag_value(name, texts[name], value) if texts[name] is not None else value
        for name, (value, _) in flags.items()
    }
    return resolve(values), own


def load(location: str) -> dict[str, typing.Any]:
    """Read a config as a nested dict of fields, not checked yet.

    ``location`` is the name of a shipped config, a Python file, or the config.json of a run, also on object storage. A
    colon after a name or a Python file introduces an argument for its ``get_config``. Raise InputError if it cannot be
    read.

    The run of a config.json is the folder it is in, also if that folder was moved or copied.
    """
    if "://" in location:
        values = dict(_read_remote_json(location))
        return values | {"run": location.rpartition("/")[0]} if values.get("run") else values
    name, _, argument = location.partition(":")
    if re.fullmatch(r"[\w-]+", name):
        path = shipped.config_file(name)
    else:
        path = pathlib.Path(location if location.endswith(".json") else name)
    try:
        is_file = path.is_file()
    except OSError as error:
        raise InputError(f"--config {location}: {error.strerror}") from error
    if not is_file:
        advice = f"; the shipped config is --config {path.stem}" if path.stem in shipped.config_names() else ""
        raise InputError(f"--config {location}: no such file{advice}")
    values = dict(_read_json(path) if path.suffix == ".json" else _run_python(path, argument))
    run = values.get("run")
    if path.name == "config.json" and isinstance(run, str) and path.parent.absolute() != pathlib.Path(run).absolute():
        values["run"] = str(path.parent)
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def parse_value(name: str, text: str, hint: typing.Any) -> typing.Any:
    """Convert the text of a command-line value to the type of a field. Raise InputError with ``name``."""
    kind = schema.base_type(hint)
    if isinstance(hint, types.GenericAlias):
        return tuple(_scalar(name, item, kind) for item in _items(name, text))
    if schema.is_optional(hint) and text in ("", "None"):
        return None
    return _scalar(name, text, kind)


def _scalar(name: str, text: typing.Any, kind: type) -> typing.Any:
    if kind is str or not isinstance(text, str):
        return text
    try:
        if kind is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text.lower()]
        if kind is float:
            return float(text)
        number = decimal.Decimal(text)
        if number.adjusted() > 30 or number != int(number):  # int() of 1e999999 takes minutes
            raise ValueError
        return int(number)
    except (KeyError, ValueError, ArithmeticError) as error:
        raise InputError(f"{name} is {text!r}; it must be {schema.TYPE_NAMES[kind]}") from error


def _items(name: str, text: str) -> Sequence[typing.Any]:
    """Split a list such as ``a,b``; also read Python's notation, ``('a', 'b')`` or ``[1, 2]``."""
    text = text.strip()
    if not text.startswith(("(", "[")):
        return [item.strip() for item in text.split(",")] if text else []
    try:
        items = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:  # the last ones for deep nesting
        raise InputError(f"{name} is {text[:80]!r}; it must be a list such as a,b") from error
    return items if isinstance(items, tuple | list) else [items]


def _add_flag(parser: Parser, name: str, value: typing.Any, help: str) -> None:
    text = f"{help} (default: {value!r})".replace("%", "%%")
    if isinstance(value, bool):
        parser.add_argument(f"--{name}", nargs="?", const="true", metavar="BOOL", help=text)
        # --noflag is short for --flag=no
        parser.add_argument(f"--no{name}", dest=name, action="store_const", const="no", help=argparse.SUPPRESS)
    else:
        action = "append" if isinstance(value, tuple) else "store"
        parser.add_argument(f"--{name}", action=action, metavar="VALUE", help=text)


def _flag_value(name: str, text: typing.Any, default: typing.Any) -> typing.Any:
    """Return the value of a flag from its text, or from its list of texts if it may be repeated."""
    if default is None:
        return text or None
    return tuple(text) if isinstance(default, tuple) else _scalar(f"--{name}", text, type(default))


def _add_fields(parser: Parser) -> None:
    groups = {"": parser.add_argument_group("the run")}
    for name, section_class in SECTIONS.items():
        groups[name] = parser.add_argument_group((section_class.__doc__ or "").strip().rstrip("."))
    for name in schema.field_names():
        hint, metadata = schema.field_spec(name)
        section, _, key = name.rpartition(".")
        default = getattr(SECTIONS[section] if section else Config, key)
        allowed = f"; one of {', '.join(metadata['choices'])}" if metadata["choices"] else ""
        default = ",".join(map(str, default)) or "empty" if isinstance(default, tuple) else default
        is_flag: dict[str, typing.Any] = {"nargs": "?", "const": "true"} if hint is bool else {}
        groups[section].add_argument(
            f"--config.{name}",
            dest=f"config.{name}",
            default=argparse.SUPPRESS,
            metavar="A,B" if isinstance(hint, types.GenericAlias) else "VALUE",
            help=f"{metadata['help']}{allowed} (default: {default})".replace("%", "%%"),
            **is_flag,
        )


def _read_json(path: pathlib.Path) -> Mapping[str, typing.Any]:
    try:
        values = json_text.parse(path.read_bytes())
    except OSError as error:
        raise InputError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--config {path}: {error}") from error
    return _checked_object(str(path), values)


def _read_remote_json(location: str) -> Mapping[str, typing.Any]:
    from revelio_jax.store import layout  # imports TensorStore, which other commands do not need

    folder, _, name = location.rpartition("/")
    values = layout.read_json(layout.open_kvstore(folder), name)
    if values is None:
        raise InputError(f"--config {location}: no such file")
    return _checked_object(location, values)


def _checked_object(location: str, values: typing.Any) -> Mapping[str, typing.Any]:
    if not isinstance(values, dict):
        raise InputError(f"--config {location} is not the config.json of a run: it must be a JSON object")
    return values


def _run_python(path: pathlib.Path, argument: str) -> Mapping[str, typing.Any]:
    """Call ``get_config`` of a config file, which is a program and may raise any exception."""
    try:
        spec = importlib.util.spec_from_file_location(f"revelio_config_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError("its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(argument) if argument else module.get_config()
    except Exception as error:
        last = (str(error).strip().splitlines() or [""])[-1]
        raise InputError(f"--config {path}: {type(error).__name__}: {last}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"--config {path}: get_config() must return the ConfigDict created by revelio_jax.config.default()"
        )
    return config.to_dict()


class RunsParser(Parser):
    """The parser of a command that takes folders of runs instead of a config; it has ``runs`` and ``--out``."""

    def __init__(self, command: str, doc: str | None, writes: str):
        super().__init__(command, doc)
        self.add_argument("runs", nargs="+", help="folders of runs")
        self.add_argument("--out", help=f"{writes} file to write", type=pathlib.Path)
