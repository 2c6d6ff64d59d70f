"""A full disk ends every command that writes into a run with one line and status 1; the old files stay."""

import errno
import os
import pathlib
import shutil

import pytest

import revelio_jax.evaluate
import revelio_jax.export
import revelio_jax.interpret.command
from revelio_jax import errors
from revelio_jax.evaluate import evaluate
from revelio_jax.export import export


def fill(disk: pathlib.Path) -> None:
    """Write zeros until the disk is full."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.fixture
def full_run(trained, with_train, small_disk):
    """The config of a finished, evaluated and exported run on a disk without free space."""
    evaluate(trained)
    export(trained)
    disk = small_disk("size=8m")
    shutil.copytree(trained.run, disk / "run")
    fill(disk)
    return with_train(trained, run=str(disk / "run"))


def files_of(folder):
    return {str(path): path.read_bytes() for path in pathlib.Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("module", [revelio_jax.evaluate, revelio_jax.export, revelio_jax.interpret.command])
def test_a_full_disk_is_one_line(full_run, config_file, tmp_path, module, capsys):
    before = files_of(full_run.run)
    path = config_file(tmp_path / "config.py", full_run)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, errors.report_errors():
        module.main(["--config", path])
    err = capsys.readouterr().err
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert stop.value.code == 1
    assert "Traceback" not in err
    assert len(lines) == 1
    assert lines[0].endswith("cannot be written: No space left on device")
    assert err.endswith(lines[0] + "\n")
    assert files_of(full_run.run) == before  # no partial file
    (pathlib.Path(full_run.run).parent / "ballast").unlink()
    module.main(["--config", path])


def test_a_learned_concept_on_a_full_disk_is_one_line(small_disk):
    torch = pytest.importorskip("torch")
    from revelio_jax.steering.learned_concepts import LearnedConcept, save_learned

    disk = small_disk("size=1m")
    fill(disk)
    learned = LearnedConcept(torch.arange(3), torch.zeros(4, 9), 0.5)
    with pytest.raises(errors.EnvironmentFailure, match="cannot be written: No space left on device"):
        save_learned(disk / "concept.safetensors", "a concept", learned)
    assert [path.name for path in disk.iterdir()] == ["ballast"]


def test_a_quota_is_like_a_full_disk():
    failure = errors.write_failure("runs/a", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert type(failure) is errors.EnvironmentFailure
