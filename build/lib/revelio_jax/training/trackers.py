"""TensorBoard and wandb, where a run asks for them: both are given the lines of metrics.jsonl.

    tensorboard --logdir runs

A resumed run goes on in the same curves, and what it measures again is not shown twice.
"""

import dataclasses
import os
import pathlib
import secrets
import time

from revelio_jax.config import Config, LoggingConfig
from revelio_jax.errors import InputError, require
from revelio_jax.training import processes


def check(logging: LoggingConfig) -> None:
    """Raise InputError where what the run asks for is not installed, or wandb would refuse it."""
    if logging.tensorboard:
        require("tensorboard", "tensorboard", "config.logging.tensorboard")
    if logging.wandb:
        require("wandb", "wandb", "config.logging.wandb")
        import wandb

        try:
            wandb.Settings(project=logging.wandb)  # checks the name
            if wandb.setup().settings.mode not in ("offline", "disabled"):
                wandb.login()
        except wandb.Error as error:
            raise InputError(
                f"config.logging.wandb is {logging.wandb!r}: {error} (WANDB_MODE=offline needs no login)"
            ) from error


def sinks(run: pathlib.Path, start: int, config: Config) -> list["TensorBoard | Wandb"]:
    """What the run asks for, from step ``start`` on; in process 0 only."""
    if not processes.is_first():
        return []
    asked = [TensorBoard(run, start)] if config.logging.tensorboard else []
    return [*asked, Wandb(run, config)] if config.logging.wandb else asked


class TensorBoard:
    """A scalar a field, in the run's folder ``tensorboard``.

    The writer is TensorBoard's own: tensorboardX would import torch where that is installed.
    """

    def __init__(self, run: pathlib.Path, start: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._Event, self._Summary = Event, Summary
        self._writer = EventFileWriter(str(run / "tensorboard"))
        # TensorBoard drops what an earlier attempt wrote from this step on.
        self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, line: dict[str, float]) -> None:
        values = [self._Summary.Value(tag=name, simple_value=value) for name, value in line.items() if name != "step"]
        self._write(line["step"], summary=self._Summary(value=values))

    def _write(self, step, **what):
        self._writer.add_event(self._Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()  # a run that is killed has its curve up to there, as it has its metrics.jsonl

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A run of wandb with the folder's name and the run's config; its id is kept in the run's folder."""

    def __init__(self, run: pathlib.Path, config: Config):
        import wandb

        kept = run / "wandb_id"
        if not kept.exists():
            part = kept.with_suffix(".part")
            part.write_text(secrets.token_hex(4))
            os.replace(part, kept)
        self._run = wandb.init(
            project=config.logging.wandb,
            id=kept.read_text(),
            name=run.absolute().name,
            dir=run,
            config=dataclasses.asdict(config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),  # stderr has the bar
        )

    def add(self, line: dict[str, float]) -> None:
        if line["step"] >= self._run.starting_step:  # wandb keeps what it has, and would warn
            self._run.log(line, step=line["step"], commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
