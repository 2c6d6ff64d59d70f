"""Measure the time of methods that remove a concept, each paired with the plain pipeline.

    python tests/benchmarks/method_times.py --json times.json
    python tests/benchmarks/method_times.py --json times.json --size 256 --pairs 3 --methods "steer,sld preset=max"

The pipeline is the architecture of Stable Diffusion 1.4 at its full width with random weights, which take as long as
trained ones, or with --miniature the miniature, 32 x 32 pixels. ``steer`` removes a concept with a random SAE, four
times as wide as the text encoder, by the rule gated. The other methods are those of `revelio benchmark` with their
settings. A row is {method, plain_s, method_s, ratio, evaluations, gradients, peak_bytes}: medians of seconds per image,
the median ratio with its interval over pairs, evaluations of the denoiser per image without and with a gradient, and
the resident memory of the process.
"""

import argparse
import contextlib
import functools
import typing
from collections.abc import Callable, Generator

import results
from steering_overhead import CONCEPT, PROMPT, SITES, miniature, random_sae, stable_diffusion_14

from revelio_jax.baselines import counted, make_settings, open_method
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.benchmark import words
from revelio_jax.benchmark.timing import paired_times, peak_memory
from revelio_jax.errors import InputError, report_errors
from revelio_jax.pipelines.sampling import sample
from revelio_jax.steering import Steerer

METHODS = "steer,negative_prompt,sld preset=max,safree,trasce"
GUIDANCE = 7.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="FILE", help="file to write the rows to")
    parser.add_argument("--methods", default=METHODS, help="methods with their settings (default: %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of images per method (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="sampling steps (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="side of the images in pixels (default: %(default)s)")
    parser.add_argument("--miniature", action="store_true", help="measure the miniature instead")
    options = parser.parse_args()
    results.check(options.json)
    for name in ("pairs", "steps"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    if options.size < 64 or options.size % 64:
        raise InputError(f"--size is {options.size}; it must be a multiple of 64")
    texts = options.methods.split(",")
    opened = [functools.partial(open_one, text, read_settings(text), options.miniature) for text in texts]
    pipe = miniature("sd") if options.miniature else stable_diffusion_14()
    pipe.set_progress_bar_config(disable=True)
    rows = []
    print("method                plain s   method s   ratio                evaluations   with gradient")
    for text, open_it in zip(texts, opened, strict=True):
        rows.append({"method": text, **measure(functools.partial(open_it, pipe), pipe, options)})
        print(
            "{method:<20} {plain_s:>8.2f}   {method_s:>8.2f}   {ratio[median]:.3f} ({ratio[low]:.3f}-{ratio[high]:.3f})"
            "   {evaluations:>11g}   {gradients:>13g}".format(**rows[-1]),
            flush=True,
        )
        results.write(options.json, {"options": vars(options), "rows": rows})


def read_settings(text: str) -> typing.Any:
    """Return the settings of a method, None for ``steer``. Raise InputError if it is unknown."""
    name, settings = words.parse("--methods", text)
    return None if name == "steer" else make_settings(name, settings)


@contextlib.contextmanager
def open_one(text: str, settings: typing.Any, is_miniature: bool, pipe: typing.Any) -> Generator[Sampler]:
    """Yield the sampler of one method."""
    if settings is None:
        steerer = Steerer(random_sae(pipe, SITES["mini_sd" if is_miniature else "sd14"]))
        with steerer.attach(pipe, {CONCEPT: -1.0}, rule="gated"):
            yield functools.partial(sample, pipe)
    else:
        with open_method(text.split()[0], pipe, [CONCEPT], settings) as sampler:
            yield sampler


def measure(
    open_it: Callable[[], contextlib.AbstractContextManager[Sampler]], pipe: typing.Any, options: argparse.Namespace
) -> dict[str, typing.Any]:
    """Return the row of one method."""

    def run(sampler: Sampler, number: int) -> None:
        size = 32 if options.miniature else options.size
        sampler([PROMPT], [number], steps=options.steps, guidance=[GUIDANCE], height=size, width=size, batch_size=1)

    @contextlib.contextmanager
    def opened() -> Generator[Callable[[int], object]]:
        with open_it() as sampler:
            yield functools.partial(run, sampler)

    with opened() as sample_one, counted(pipe) as evaluations, peak_memory() as peak:  # also the warm-up
        sample_one(0)
    plain = functools.partial(run, functools.partial(sample, pipe))
    summary = paired_times(plain, opened, 1, options.pairs, warmup=0).summary()
    without, gradients = evaluations.per_image(1)
    return {**summary, "evaluations": without, "gradients": gradients, "peak_bytes": peak.bytes}


if __name__ == "__main__":
    with report_errors():
        main()
