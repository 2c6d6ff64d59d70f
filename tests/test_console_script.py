"""The console script: help, unknown commands, names of shipped configs, and closed pipes."""

import importlib
import os
import subprocess
import sys
import tomllib

import pytest

from revelio_jax import cli, commands, shipped
from revelio_jax.errors import InputError
from tests.helpers import ROOT


def revelio(*arguments: str, cwd=ROOT, **options) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": "/nowhere"}
    argv = [sys.executable, "-m", "revelio_jax", *arguments]
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, **options)


def test_the_overview_fits_on_a_screen_and_names_every_command(capsys):
    commands.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for name in commands.COMMANDS:
        assert any(line.startswith(f"  {name} ") for line in lines)


def test_without_arguments_the_overview_is_printed(capsys):
    commands.main([])
    assert capsys.readouterr().out.startswith("usage: revelio COMMAND")


@pytest.mark.slow
@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_a_main_that_prints_its_help_under_the_name_it_was_called(name, capsys):
    with pytest.raises(SystemExit) as exit:
        commands.main([name, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: revelio {name} ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [*([name, "--help"] for name in commands.COMMANDS), ["extract", "--config", "mini_sd", "--list_sites"]]
)
def test_a_command_ends_silently_if_the_reader_of_its_output_is_gone(arguments, capfd, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as exit:
            commands.main(arguments)
    assert exit.value.code == 141
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_python_m_prints_the_module_as_the_name(capsys):
    for name, (module, _, _) in commands.COMMANDS.items():
        with pytest.raises(SystemExit):
            importlib.import_module(module).main(["--help"])
        assert capsys.readouterr().out.startswith("usage: python -m "), name


def test_an_unknown_command_is_one_line_with_the_closest_name():
    done = revelio("trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unknown command 'trian'; did you mean train?\n"
    assert "commands: extract, train, " in revelio("zzz").stderr


@pytest.mark.parametrize(
    ("command", "package", "extras"),
    [("extract", "PIL", "extract"), ("train", "jax", "train"), ("steer", "torch", "steer"), ("plan", "jax", "plan")],
)
def test_a_missing_package_is_one_line_with_the_extras_of_the_command(command, package, extras):
    code = f"import sys; sys.modules[{package!r}] = None; import revelio_jax.commands as c; c.main([{command!r}])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {command} needs the package {package}; pip install 'revelio_jax[{extras}]'\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_the_extras_of_every_command_exist(name):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(commands.COMMANDS[name][1].split(",")) <= set(known)


@pytest.mark.slow
def test_a_wrong_flag_names_the_command_as_it_was_called():
    done = revelio("export", "--size=3")
    assert (done.returncode, done.stderr) == (
        2,
        "error: unknown flag --size; see python -m revelio_jax export --help\n",
    )


def test_the_overview_loads_neither_torch_nor_jax():
    code = (
        "import sys; from revelio_jax.commands import main; main(['--help'])\n"
        "assert not {'torch', 'jax', 'diffusers', 'tensorstore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["--help", "train --help", "none 2>&1"])
def test_a_closed_pipe_prints_no_traceback(arguments):
    """The pipe is closed before the command writes."""
    command = f'"{sys.executable}" -m revelio_jax {arguments} | true; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    status = 2 if "none" in arguments else 141
    assert (done.stdout, done.stderr) == (f"{status}\n", "")


def test_a_closed_pipe_while_printing_ends_with_the_status_of_a_signal():
    code = "from revelio_jax.errors import report_errors\nwith report_errors():\n    for i in range(100_000): print(i)"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | head -1; echo "${{PIPESTATUS[0]}}"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("0\n141\n", "")


def test_a_name_finds_a_shipped_config_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = cli.parse(["a.command", "--config", "mini_sd"], "")
    assert config.model.id == "extract/miniature/sd"
    with pytest.raises(InputError, match=r"--config mini_sdd: unknown config; did you mean mini_sd\?"):
        cli.load("mini_sdd")
    with pytest.raises(InputError, match=r"--config zzz: unknown config; shipped configs: dit_xl2, flux_t5, "):
        cli.load("zzz")
    with pytest.raises(InputError, match=r"mini_sd\.py: no such file; the shipped config is --config mini_sd"):
        cli.load("configs/mini_sd.py")


def test_shipped_files_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "extract/miniature/sd/prompts.csv"
    assert shipped.locate(name) == str(ROOT / name)
    assert shipped.locate("extract/miniature/none") == "extract/miniature/none"
    assert shipped.locate("owner/name") == "owner/name"
    (tmp_path / "extract/miniature/sd").mkdir(parents=True)
    assert shipped.locate("extract/miniature/sd") == "extract/miniature/sd"  # a local folder comes first


def test_an_unknown_miniature_is_refused_with_the_known_names():
    assert shipped.miniature("flux") == str(ROOT / "extract" / "miniature" / "flux")
    with pytest.raises(InputError, match="unknown miniature 'sdxl'; allowed: flux, sd"):
        shipped.miniature("sdxl")
