"""Reports on planted results: of images, and of texts that include hostile prompts."""

import dataclasses

import pytest

from revelio_jax.config import Config
from revelio_jax.interpret import report
from tests.helpers import planted

HOSTILE = [
    "</script><script>document.title = 'stolen'</script>",
    "<img src=x onerror=\"document.title='stolen'\">",
    "quotes \" ' ` and \\ backslash \u2028 line separator",
    "\u202eright to left override",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "emoji \U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467 and \u65e5\u672c\u8a9e",
    "__proto__ constructor toString",
    "long " * 2000,
    "one" * 3000,
]


@pytest.fixture(scope="session")
def config_of():
    """A function that returns the config of a run's folder."""
    return lambda run, **fields: dataclasses.replace(Config(), run=str(run), **fields)


@pytest.fixture(scope="session")
def text_store(tmp_path_factory):
    prompts = [f"a heart beside a {word}" for word in planted.WORDS] + HOSTILE
    return planted.make_store(tmp_path_factory.mktemp("stores") / "text", "text", planted.Size(), prompts)


@pytest.fixture(scope="session")
def image_store(tmp_path_factory):
    return planted.make_store(tmp_path_factory.mktemp("stores") / "image", "image", planted.Size())


@pytest.fixture(scope="session")
def text_report(tmp_path_factory, text_store, config_of):
    """The report of texts in two languages, some of them hostile."""
    run = tmp_path_factory.mktemp("runs") / "texts"
    results = planted.make(run, text_store, "text", planted.Size(), stratum="language")
    return report.write(config_of(run), results)


@pytest.fixture(scope="session")
def image_report(tmp_path_factory, image_store, config_of):
    """The report of images at two timesteps, compared with another run with fewer latents."""
    runs = tmp_path_factory.mktemp("runs")
    small = planted.Size(latents=90)
    other = planted.make(runs / "other", image_store, "image", small, seed=1)
    results = planted.make(runs / "images", image_store, "image", planted.Size())
    report.write(config_of(runs / "other"), other)
    return report.write(config_of(runs / "images"), results, [other])
