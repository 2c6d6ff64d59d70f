"""Send the lines of metrics.jsonl to TensorBoard and wandb, if the config enables them.

    tensorboard --logdir runs

A resumed run continues the same curves; repeated steps are not shown twice.
"""

import dataclasses
import pathlib
import secrets
import time
import typing

from revelio_jax.config import Config, LoggingConfig
from revelio_jax.errors import InputError, require
from revelio_jax.files import write_text
from revelio_jax.training import processes


def check(logging: LoggingConfig) -> None:
    """Raise InputError if an enabled tracker is not installed, or wandb rejects the project or the login."""
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
                f"config.logging.wandb is {logging.wandb!r}: {error} (WANDB_MODE=offline works without a login)"
            ) from error


def sinks(run: pathlib.Path, start: int, config: Config) -> list["TensorBoard | Wandb"]:
    """Return the enabled trackers of a run that starts after step ``start``; only the first process has any."""
    if not processes.is_first():
        return []
    trackers: list[TensorBoard | Wandb] = []
    if config.logging.tensorboard:
        trackers.append(TensorBoard(run, start))
    if config.logging.wandb:
        trackers.append(Wandb(run, config))
    return trackers


class TensorBoard:
    """A writer of one scalar per field to the folder ``tensorboard`` of the run.

    It is based on TensorBoard's own writer, because tensorboardX imports torch if it is installed.
    """

    def __init__(self, run: pathlib.Path, start: int):
        # Protobuf creates these classes at import.
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._Event, self._Summary = Event, Summary
        self._writer = EventFileWriter(str(run / "tensorboard"))
        # This event makes TensorBoard drop events of an earlier attempt, starting at this step.
        self._write(start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, line: dict[str, float]) -> None:
        values = [self._Summary.Value(tag=name, simple_value=value) for name, value in line.items() if name != "step"]
        self._write(line["step"], summary=self._Summary(value=values))

    def _write(self, step: float, **event: typing.Any) -> None:
        self._writer.add_event(self._Event(wall_time=time.time(), step=int(step), **event))
        self._writer.flush()  # so that a killed run keeps its curve

    def close(self, failed: bool) -> None:
        self._writer.close()


class Wandb:
    """A wandb run with the name of the run's folder and its config. The file ``wandb_id`` stores its id."""

    def __init__(self, run: pathlib.Path, config: Config):
        import wandb

        id_file = run / "wandb_id"
        if not id_file.exists():
            write_text(id_file, secrets.token_hex(4))
        self._run = wandb.init(
            project=config.logging.wandb,
            id=id_file.read_text(),
            name=run.absolute().name,
            dir=run,
            config=dataclasses.asdict(config),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),  # the progress bar is on stderr
        )

    def add(self, line: dict[str, float]) -> None:
        if line["step"] >= self._run.starting_step:  # wandb keeps earlier steps and would warn
            self._run.log(line, step=int(line["step"]), commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
