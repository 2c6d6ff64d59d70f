"""The settings of the method steer limit steering as the arguments of Steerer.attach do."""

import dataclasses

import numpy as np
import pytest

from revelio_jax.benchmark import drawing
from revelio_jax.benchmark.images import ImageFolder
from revelio_jax.benchmark.tasks import CONCEPT, Task, TaskPrompt
from revelio_jax.benchmark.variants import TaskMethods, check_limits, parse_method
from revelio_jax.config import Config
from revelio_jax.errors import InputError
from revelio_jax.pipelines.sampling import call_settings, sample

STEER = dataclasses.replace(Config().steer, steps=2, guidance=2.5, height=32, width=32)
TEXT = "noto emoji of cat"
PROMPT = TaskPrompt("labeled", "0", CONCEPT, TEXT, None, 2.5, 32, 32, {"style": "noto"})
TASK = Task("style", "noto", None, False, (PROMPT,), {})
LABELED = [{"prompt": TEXT, "style": "noto"}, {"prompt": "flat emoji of cat", "style": "flat"}]


@pytest.fixture
def pixels(pipe, make_steerer, tmp_path):
    """A function that draws the benchmark's image of a method at a hook point."""

    def draw(text, site):
        methods = TaskMethods(
            TASK, dataclasses.replace(Config(), steer=STEER), pipe, make_steerer(pipe, site), LABELED, {}
        )
        (variant,) = methods.variants([parse_method(text, (-8.0,))])
        shots = drawing.shots_of(TASK, 1)
        drawing.draw(methods, [variant], shots, tmp_path / site, STEER)
        return ImageFolder(tmp_path / site, variant.key).read(shots[0])[0]

    return draw


@pytest.mark.parametrize(
    ("site", "settings", "arguments"),
    [
        ("clip.layer.2", "negative_branch=no", {"negative_branch": False}),
        ("clip.layer.2", "positions=content", {"positions": "content"}),
        ("unet.mid_block", "timesteps=1000,600 ramp=1,0", {"steps": (1000, 600), "ramp": (1, 0)}),
    ],
)
def test_a_setting_gives_the_image_of_the_same_argument(pixels, pipe, make_steerer, site, settings, arguments):
    steerer = make_steerer(pipe, site)
    sampling = call_settings(pipe, STEER) if site.startswith("unet") else None
    with steerer.attach(pipe, {"noto": -8.0}, rule="paper", sampling=sampling, **arguments):
        shot = drawing.shots_of(TASK, 1)[0]
        expected = sample(pipe, [TEXT], [shot.total_seed], steps=2, guidance=[2.5], height=32, width=32, batch_size=4)
    paper = "steer rule=paper learned=text"
    limited = pixels(f"{paper} {settings}", site)
    np.testing.assert_array_equal(limited, expected.images[0])
    assert (limited != pixels(paper, site)).any()


def test_limits_without_effect_at_a_hook_point_are_refused():
    check_limits([parse_method(text, ()) for text in ("plain", "steer positions=content")], "clip.layer.2")
    check_limits([parse_method("steer timesteps=1000,600", ())], "unet.mid_block")
    with pytest.raises(InputError, match=r"positions must be all at unet\.mid_block"):
        check_limits([parse_method("steer positions=content", ())], "unet.mid_block")
    with pytest.raises(InputError, match=r"timesteps and ramp need a hook point of the denoiser, not clip\.layer\.2"):
        check_limits([parse_method("random_direction ramp=1,0", ())], "clip.layer.2")
