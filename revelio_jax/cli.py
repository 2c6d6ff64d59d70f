"""What every command does with its arguments: ``--config FILE``, overrides of fields, its own flags.

FILE is a file in ``configs/`` or the config.json that a run wrote; ``--config.train.steps=1000`` overrides.
"""

import dataclasses
import json
import pathlib
import typing
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from revelio_jax.config import SECTIONS, Config, did_you_mean, resolve
from revelio_jax.errors import InputError


def parse(argv: Sequence[str], doc: str, **extra: tuple[typing.Any, str]) -> tuple[Config, dict]:
    """Read ``--config FILE``, its overrides and the command's own flags.

    ``extra`` maps a flag's name to (default, help); the default's type is the flag's, a tuple may be
    given several times. Returns the checked config and the values of the extra flags. ``--help``
    prints every flag and exits 0.
    """
    command = pathlib.Path(argv[0])
    if "--help" in argv or "-h" in argv or "-help" in argv:
        print(_help(doc, extra))
        raise SystemExit(0)
    argv = _last_of_each(argv)
    path = _config_argument(argv)
    # In a config file's name, what follows a colon is the file's.
    if path and not pathlib.Path(path if path.endswith(".json") else path.partition(":")[0]).is_file():
        raise InputError(f"--config {path}: no such file")
    values, flag_argv, written = flags.FlagValues(), list(argv), None
    if path.endswith(".json"):
        flag_argv, written = _without_config(argv), _from_json(path)
    define = {
        bool: flags.DEFINE_bool,
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        tuple: flags.DEFINE_multi_string,
    }
    for name, (value, help) in extra.items():
        define[type(value)](name, value, help, flag_values=values)
    try:
        if written:
            config_flags.DEFINE_config_dict("config", written, flag_values=values, sys_argv=flag_argv)
        else:
            config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=flag_argv)
        rest = values(flag_argv)
    except Exception as error:  # a config file is a program: it may raise anything
        raise InputError(_explain(argv, error)) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; see python -m {command} --help")
    if not path:
        raise InputError("--config is missing; it names a file, as --config configs/mini_sd.py")
    given = values["config"].value
    if not isinstance(given, ml_collections.ConfigDict):
        raise InputError(f"--config {path}: its get_config() fails to return what default() makes")
    config = resolve(given)
    return config, {name: values[name].value for name in extra}


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """A field given twice has its last value; of tuples, ml_collections would join both."""
    names = [argument.partition("=")[0] if argument.startswith("--config.") else "" for argument in argv]
    written = ["=" in argument for argument in argv]
    return [
        argument
        for i, argument in enumerate(argv)
        if not (names[i] and written[i] and names[i] in names[i + 1 :])
    ]


def _config_argument(argv: Sequence[str]) -> str:
    for argument, after in zip(argv, [*argv[1:], ""], strict=True):
        if argument.startswith("--config="):
            return argument.removeprefix("--config=")
        if argument == "--config":
            return after
    return ""


def _without_config(argv: Sequence[str]) -> list[str]:
    before = ["", *argv]
    return [
        argument
        for argument, previous in zip(argv, before, strict=False)
        if not argument.startswith("--config=") and "--config" not in (argument, previous)
    ]


def _from_json(path: str) -> ml_collections.ConfigDict:
    """What a run's config.json holds, checked."""
    try:
        values = json.loads(pathlib.Path(path).read_text())
    except ValueError as error:
        raise InputError(f"--config {path}: {error}") from error
    if not (isinstance(values, dict) and all(isinstance(section, dict) for section in values.values())):
        raise InputError(f"--config {path} fails to hold what a run writes, an object of sections")
    return ml_collections.ConfigDict(dataclasses.asdict(resolve(values)))


def _explain(argv: Sequence[str], error: Exception) -> str:
    """One line for what absl or the config file raised."""
    for argument in argv[1:]:
        path = argument.removeprefix("--config.").partition("=")[0].split(".")
        if not argument.startswith("--config.") or len(path) != 2:
            continue
        section, key = path
        if section not in SECTIONS:
            return f"config.{section} is no section; sections: {', '.join(SECTIONS)}"
        names = [field.name for field in dataclasses.fields(SECTIONS[section])]
        if key not in names:
            return f"config.{section}.{key} is no field; {did_you_mean(key, names)}"
        if f"flag {argument}:" in str(error):  # absl could not make a value of it
            hint = typing.get_type_hints(SECTIONS[section])[key]
            value = argument.partition("=")[2]
            return (
                f"config.{section}.{key} is {value!r}; it must be of type {getattr(hint, '__name__', hint)}"
            )
    lines = str(error).strip().splitlines() or [""]  # the last one is what was raised in the file
    if isinstance(error, flags.Error):
        return f"{lines[-1]}; see python -m {argv[0]} --help"
    return f"--config {_config_argument(argv)}: {type(error).__name__}: {lines[-1]}"


def _help(doc: str, extra: dict) -> str:
    lines = [doc.strip(), "", "  --config FILE  an experiment in configs/", ""]
    for name, (value, help) in extra.items():
        lines.append(f"  --{name}  {help} (default: {value!r})")
    for name, section in SECTIONS.items():
        lines += ["", f"  {section.__doc__}"]
        for field in dataclasses.fields(section):
            allowed = field.metadata["choices"]
            allowed = f"; one of {', '.join(allowed)}" if allowed else ""
            lines.append(
                f"  --config.{name}.{field.name}  {field.metadata['help']}{allowed} "
                f"(default: {field.default!r})"
            )
    return "\n".join(lines)
