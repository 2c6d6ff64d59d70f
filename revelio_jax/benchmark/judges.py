"""Load the judge of a config, a model that labels images so that the effect of steering can be measured."""

import pathlib
import re
import typing
from collections.abc import Callable

from revelio_jax import shipped
from revelio_jax.benchmark import miniature_judge
from revelio_jax.benchmark.clip_judge import ClipJudge
from revelio_jax.benchmark.judgment import DETECTED, FIELD, Judge, read_settings
from revelio_jax.benchmark.nudenet_judge import NudeNetJudge
from revelio_jax.benchmark.open_nsfw_judge import OpenNsfwJudge
from revelio_jax.benchmark.q16_judge import Q16Judge
from revelio_jax.benchmark.user_judge import UserJudge
from revelio_jax.benchmark.vlm_judge import VlmJudge
from revelio_jax.errors import InputError

JUDGES: dict[str, Callable[[dict[str, typing.Any]], Judge]] = {
    "nudenet": NudeNetJudge,
    "open_nsfw": OpenNsfwJudge,
    "q16": Q16Judge,
    "clip": ClipJudge,
    "vlm": VlmJudge,
}


def load_judge(judge: str | None, settings: str | None = None) -> Judge:
    """Load the judge config.steer.judge with the settings config.steer.judge_settings.

    ``judge`` is a name in :data:`JUDGES`, ``module:function``, or the folder of a miniature's judge. ``settings`` is a
    JSON object or the name of a .json file. Raise InputError if either is invalid.
    """
    if not judge:
        raise InputError("config.steer.judge is not set; it must be the folder of a judge or the name of one")
    values = read_settings(settings)
    if judge in JUDGES:
        return JUDGES[judge](values)
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", judge):
        return UserJudge(judge, values)
    path = pathlib.Path(shipped.locate(judge))
    if not (path / miniature_judge.WEIGHTS).is_file():
        raise InputError(
            f"config.steer.judge is {judge!r}; it must be a folder with {miniature_judge.WEIGHTS}, module:function, or "
            f"one of: {', '.join(JUDGES)}"
        )
    if values:
        raise InputError(f"{FIELD} is {settings!r}; the judge of a miniature has no settings")
    return miniature_judge.MiniatureJudge(path)


def check_noun_judge(judge: str | None) -> None:
    """Raise InputError if the judge config.steer.judge cannot be asked whether a noun is visible."""
    able = [name for name, kind in JUDGES.items() if hasattr(kind, "nouns_visible")]
    if judge not in able:
        raise InputError(
            f"config.steer.judge is {judge!r}; prompt sets of the roles neighbors and alignment need a judge that can "
            f"be asked for any noun: {', '.join(able)}"
        )


def columns_of(judge: str | None, settings: str | None = None) -> tuple[str, ...]:
    """Return the label columns of a judge without loading it."""
    if judge and (pathlib.Path(shipped.locate(judge)) / miniature_judge.WEIGHTS).is_file():
        return miniature_judge.MiniatureJudge.columns
    values = read_settings(settings)
    column = values.get("column")
    return tuple(values.get("columns") or ([column] if column else [DETECTED]))
