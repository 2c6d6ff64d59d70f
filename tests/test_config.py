"""The configuration: overrides, checks, help; each wrong value is one line that names the field."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revelio_jax import cli
from revelio_jax import config as configs
from revelio_jax.config import renamed
from revelio_jax.errors import InputError, report_errors
from tests.helpers import ROOT

FIELDS = [
    f"config.{name}.{field.name}" for name, section in configs.SECTIONS.items() for field in dataclasses.fields(section)
]


@pytest.fixture
def file(tmp_path):
    """A function that writes a config file whose body sets fields of ``c``; returns its path."""

    def write(body=""):
        path = tmp_path / "config.py"
        path.write_text(
            "from revelio_jax.config import default\n\ndef get_config():\n"
            f"    c = default()\n    {body or 'pass'}\n    return c\n"
        )
        return str(path)

    return write


def parse(path, *arguments, **extra):
    return cli.parse(["a.command", "--config", path, *arguments], "A command.", **extra)


def test_fields_come_from_the_file_and_then_from_the_command_line(file):
    path = file("c.train.steps = 7; c.extract.sites = ('a', 'b'); c.sae.aux_alpha = 0")
    config, _ = parse(path, "--config.train.seed=3", "--config.model.id=x/y", "--config.train.resume")
    assert (config.train.steps, config.train.seed, config.train.resume) == (7, 3, True)
    assert config.extract.sites == ("a", "b")
    assert config.model.id == "x/y"
    assert config.sae.aux_alpha == 0.0
    assert isinstance(config.sae.aux_alpha, float)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 8


@pytest.mark.parametrize("given", ["(0,25)", "[0,25]", "0,25"])
def test_timesteps_on_the_command_line(file, given):
    assert parse(file(), f"--config.extract.timesteps={given}")[0].extract.timesteps == (0, 25)


def test_timesteps_are_whole_numbers(file):
    assert parse(file(), "--config.extract.timesteps=25")[0].extract.timesteps == (25,)
    with pytest.raises(InputError, match=r"timesteps is .*; it must be a tuple of whole numbers"):
        parse(file("c.extract.timesteps = (0.5,)"))


@pytest.mark.parametrize("given", ["('a','b')", "['a','b']"])
def test_sites_on_the_command_line(file, given):
    assert parse(file(), f"--config.extract.sites={given}")[0].extract.sites == ("a", "b")


def test_the_last_of_repeated_overrides_counts(file):
    """A script can append the user's arguments to its own."""
    sites = ("--config.extract.sites=('a','b')", "--config.extract.sites=c", "--config.train.seed=3")
    config, extra = parse(file(), *sites, "--config.train.seed=4", "--word=x", word=("", "w"))
    assert (config.extract.sites, config.train.seed, extra) == (("c",), 4, {"word": "x"})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("extract.sites=a,b", ("a", "b")),
        ("extract.sites=", ()),
        ("steer.timesteps=1000,600.5", (1000.0, 600.5)),
        ("train.steps=1e4", 10_000),
        ("train.resume=yes", True),
        ("train.resume=No", False),
        ("model.id=", None),
        ("data.site=None", None),
        ("mesh.feature=", None),
        ("train.clip_norm=None", None),
        ("extract.prompt=", ""),
    ],
)
def test_the_command_line_takes_lists_exponents_booleans_and_empty_values(file, argument, value):
    config, _ = parse(file("c.extract.sites = ('x',); c.model.id = 'x'; c.data.site = 'x'"), f"--config.{argument}")
    section, _, key = argument.partition("=")[0].partition(".")
    assert getattr(getattr(config, section), key) == value


@pytest.mark.parametrize(("old", "new"), renamed.FIELDS.items())
def test_an_old_field_name_is_refused_with_the_new_one(file, old, new):
    section, key = old.split(".")
    message = f"config.{old} is now called config.{new}"
    with pytest.raises(InputError, match=re.escape(message)):
        parse(file(), f"--config.{old}=3")
    with pytest.raises(InputError, match=re.escape(message)):
        parse(file(f"c.{old} = 3"))
    with pytest.raises(InputError, match=re.escape(message)):
        configs.resolve({section: {key: 3}})


def test_one_site_on_the_command_line_needs_no_brackets(file):
    assert parse(file(), "--config.extract.sites=clip.layer.9")[0].extract.sites == ("clip.layer.9",)


def test_own_flags_of_a_command_are_parsed(file):
    _, extra = parse(file(), "--n=3", "--word", "x", n=(1, "n"), word=("", "w"), quick=(False, "q"))
    assert extra == {"n": 3, "word": "x", "quick": False}
    assert parse(file(), "--noquick", quick=(True, "q"))[1] == {"quick": False}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.train.steps = 0", "config.train.steps is 0; it must be at least 1"),
        ("c.train.steps = 'many'", "TypeError: Could not override field 'steps'"),
        ("c.data.held_out = 0.7", "config.data.held_out is 0.7; it must be at most 0.5"),
        ("c.train.learning_rate = float('nan')", "config.train.learning_rate is nan; it must be a finite number"),
        (
            "c.extract.positions = 'some'",
            "config.extract.positions is 'some'; allowed: auto, all, no_padding, content",
        ),
        ("c.extract.sites = (1, 2)", "config.extract.sites"),
        ("c.train.stepps = 3", "stepps"),
        ("c.training = 3", "training"),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module", "no_such_module"),
        ("x = = 3", "SyntaxError"),
        ("return None", "get_config() must return"),
        ("open('no such file')", "FileNotFoundError"),
    ],
)
def test_a_wrong_config_file_is_refused_with_the_reason(file, body, message):
    with pytest.raises(InputError) as error:
        parse(file(body))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.steps=0", "config.train.steps is 0; it must be at least 1"),
        ("--config.steer.height=33", "config.steer.height is 33; it must be a multiple of 8"),
        ("--config.train.steps=many", "config.train.steps is 'many'; it must be a whole number"),
        ("--config.train.steps=1.5", "config.train.steps is '1.5'; it must be a whole number"),
        ("--config.train.resume=perhaps", "config.train.resume is 'perhaps'; it must be yes or no"),
        ("--config.train.step=3", "unknown field config.train.step; did you mean steps?"),
        ("--config.train.xyz=3", "unknown field config.train.xyz; fields: steps, batch_size, learning_rate"),
        ("--config.trian.steps=3", "unknown config.trian; config has: run, model, extract, data, sae, train"),
        ("--config.model.dtype=int8", "config.model.dtype is 'int8'; allowed: float32, float16, bfloat16"),
        ("--steps=3", "unknown flag --steps"),
        ("again", "unexpected argument 'again'"),
    ],
)
def test_a_wrong_argument_is_refused_with_the_reason(file, argument, message):
    with pytest.raises(InputError) as error:
        parse(file(), argument)
    assert message in str(error.value)


def test_a_runs_config_json_is_a_config(file, tmp_path):
    config, _ = parse(file("c.train.steps = 7; c.sae.prefixes = (0.5, 1); c.extract.sites = ('a', 'b')"))
    path = tmp_path / "k=3,rate=0.1"
    path.write_text(config.to_json())
    path = path.rename(f"{path}.json")
    for argv in (["--config", str(path)], [f"--config={path}"]):
        assert cli.parse(["a.command", *argv], "doc")[0] == config
    changed, extra = parse(str(path), "--config.train.seed=3", "--word=x", word=("", "w"))
    assert (changed.train.seed, changed.train.steps, extra) == (3, 7, {"word": "x"})
    for argument, message in {
        "--config.train.step=3": "unknown field config.train.step; did you mean steps?",
        "--config.train.steps=x": "config.train.steps is 'x'; it must be a whole number",
        "again": "unexpected argument 'again'",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            parse(str(path), argument)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        ("[]", "is not the config.json of a run"),
        ('{"train": 3}', "config.train is 3; it must be a section"),
        ('{"train": {"stepps": 3}}', "unknown field config.train.stepps"),
        ('{"train": {"steps": 0}}', "config.train.steps is 0"),
    ],
)
def test_a_wrong_config_json_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        parse(str(path))


def test_the_run_of_a_config_json_is_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse("mini_sd", "--config.run=runs/old")[0]
    for folder in ("runs/old", "runs/copy"):
        pathlib.Path(folder).mkdir(parents=True)
        pathlib.Path(folder, "config.json").write_text(config.to_json())
        assert parse(f"{folder}/config.json")[0].run == folder
        assert parse(f"{folder}/config.json", "--config.run=runs/new")[0].run == "runs/new"
    assert parse(str(tmp_path / "runs/old/config.json"))[0].run == "runs/old"  # the same folder
    monkeypatch.chdir("runs")
    assert parse("old/config.json")[0].run == "old"
    pathlib.Path("old/other.json").write_text(config.to_json())
    assert parse("old/other.json")[0].run == "runs/old"


def test_a_missing_config_is_refused(tmp_path, monkeypatch):
    # All config files are loaded as a module of the same name, which keeps earlier definitions.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    with pytest.raises(InputError, match="--config is missing"):
        cli.parse(["a.command"], "doc")
    with pytest.raises(InputError, match=r"none\.py: no such file"):
        parse(str(tmp_path / "none.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(InputError, match="get_config"):
        parse(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prefixes": (0.5,)}, "config.sae.prefixes is (0.5,); it must increase, from above 0, and end at 1.0"),
        ({"prefixes": (0.5, 0.5, 1.0)}, "config.sae.prefixes is (0.5, 0.5, 1.0); it must increase"),
        ({"prefixes": (0, 1.0)}, "config.sae.prefixes is (0.0, 1.0); it must increase, from above 0"),
        ({"prefixes": (0.5, 2.0)}, "config.sae.prefixes is (0.5, 2.0); it must increase"),
        ({"prefixes": (float("nan"), 1.0)}, "config.sae.prefixes is nan; it must be a finite number"),
        (
            {"prefixes": (0.5, 1.0), "architecture": "dense"},
            "it needs config.sae.architecture topk or batch_topk, not dense",
        ),
        (
            {"multi_topk": 0.125, "architecture": "jumprelu"},
            "config.sae.multi_topk is 0.125; it needs config.sae.architecture",
        ),
        (
            {"encode_chunk": 512, "architecture": "dense"},
            "config.sae.encode_chunk is 512; it needs config.sae.architecture",
        ),
        (
            {"k": 4, "k_start": 8, "k_anneal_steps": 9, "architecture": "dense"},
            "config.sae.k_start is 8; it needs config.sae.architecture topk or batch_topk or jumprelu",
        ),
        ({"k": 4, "k_start": 8}, "config.sae.k_start is 8; config.sae.k_anneal_steps must then be at least"),
        ({"k_anneal_steps": 9}, "config.sae.k_anneal_steps is 9; config.sae.k_start must then be set"),
        (
            {"k": 4, "k_start": 3, "k_anneal_steps": 9},
            "config.sae.k_start is 3; it must be at least config.sae.k, 4, or None",
        ),
    ],
    ids=str,
)
def test_contradictory_fields_of_the_autoencoder_are_refused(fields, message):
    with pytest.raises(InputError) as error:
        configs.resolve({"sae": fields})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_compatible_fields_of_the_autoencoder_are_accepted():
    matryoshka = {"prefixes": (0.25, 1), "multi_topk": 0.125, "k_start": 64, "k_anneal_steps": 9}
    assert configs.resolve({"sae": matryoshka}).sae.prefixes == (0.25, 1.0)
    annealed = {"architecture": "jumprelu", "k_start": 32, "k_anneal_steps": 9}
    assert configs.resolve({"sae": annealed}).sae.k_start == 32


@pytest.mark.slow
@given(value=st.integers() | st.floats() | st.text() | st.none() | st.booleans() | st.lists(st.text()))
def test_any_value_is_accepted_or_refused_with_the_name_of_the_field(value):
    for name, section in configs.SECTIONS.items():
        for field in dataclasses.fields(section):
            tree = {name: {field.name: value}}
            message = ""
            try:
                taken = getattr(getattr(configs.resolve(tree), name), field.name)
            except InputError as error:
                message = str(error)
            if message:
                assert message.startswith(f"config.{name}.{field.name} ")
            else:
                assert type(taken) in (int, float, str, bool, tuple, type(None))


def test_help_describes_every_flag(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.parse(["a.command", "--help"], "What it does.", count=(3, "how many"))
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert "What it does." in out
    assert re.search(r"--count VALUE\s+how many \(default: 3\)", out)
    assert all(f"--{field} " in out for field in FIELDS)


def test_an_input_error_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as exit, report_errors():
        raise InputError("one\n  two")
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: one two\n"


def test_the_command_as_a_process_refuses_a_missing_config():

    argv = [sys.executable, "-m", "extract.run", "--config", "configs/none.py"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --config configs/none.py: no such file\n"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_shipped_config_resolves_and_documents_its_command(path):
    config, _ = parse(str(path))
    assert config.model.id
    assert config.extract.sites
    text = path.read_text()
    assert len(re.findall(rf"^    revelio extract\|.* --config {path.stem}\b", text, re.MULTILINE)) == 1
    assert "Hardware:" in text
    assert "Store:" in text


def test_configs_of_concept_steerers_have_the_papers_values():
    sd, _ = parse(str(ROOT / "configs/sd14_clip.py"))
    flux, _ = parse(str(ROOT / "configs/flux_t5.py"))
    assert (sd.extract.sites, sd.sae.k, sd.sae.expansion) == (("clip.layer.9",), 32, 4)
    assert (flux.extract.sites, flux.sae.k, flux.sae.expansion) == (("t5.block.22",), 64, 16)
    assert (flux.model.dtype, flux.extract.dtype) == ("bfloat16", "bfloat16")
    for config in (sd, flux):
        assert config.extract.positions == "all"
        assert (config.train.batch_size, config.train.learning_rate, config.train.adam_eps) == (
            4096,
            4e-4,
            6.25e-10,
        )
        assert (config.sae.k_aux, config.sae.aux_alpha, config.sae.dead_after_rows) == (
            256,
            1 / 32,
            10_000_000,
        )
        assert config.train.steps * config.train.batch_size == pytest.approx(400e6, rel=1e-4)


def test_configs_of_revelio_have_the_papers_values():
    unet, _ = parse(str(ROOT / "configs/sd15_unet.py"))
    dit, _ = parse(str(ROOT / "configs/dit_xl2.py"))
    assert unet.extract.sites == ("unet.mid_block", *(f"unet.up_blocks.{i}" for i in range(3)))
    assert dit.extract.sites == tuple(f"dit.block.{i}" for i in (6, 10, 14, 18, 22))
    for config in (unet, dit):
        assert (config.extract.mode, config.extract.prompt, config.extract.pool) == ("noised", "", "mean")
        assert config.extract.timesteps == (0, 25, 100, 200, 500)
        assert (config.extract.height, config.extract.width) == (256, 256)
        assert (config.sae.k, config.sae.expansion, config.sae.k_aux) == (32, 64, 0)
        assert config.data.site in config.extract.sites


@pytest.mark.usefixtures("forbidden_folder")  # this process is not root
def test_a_config_that_may_not_be_read_is_refused():
    with pytest.raises(InputError, match=r"--config .*: Permission denied"):
        cli.load("/proc/1/root/config.json")


def test_a_number_with_a_huge_exponent_is_refused_at_once(file):
    with pytest.raises(InputError, match=r"config\.train\.steps is '1e999999999'; it must be a whole number"):
        parse(file(), "--config.train.steps=1e999999999")
