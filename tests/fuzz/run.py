"""Fuzz the readers of untrusted files until a time is over, and print a table of counts.

    python -m tests.fuzz.run --seconds 600                      every reader in turn
    python -m tests.fuzz.run --seconds 600 --targets manifest,image
    python -m tests.fuzz.run --seconds 600 --targets cfg_json --atheris   coverage-guided; pip install atheris

A reader fails if it raises anything but an InputError of one line, takes more than 10 s, or raises the memory of the
process by more than 2 GiB. The failing file is written to the folder --out, and the status is 1.
"""

import argparse
import hashlib
import pathlib
import random
import resource
import signal
import sys
import time
import traceback
import warnings

from tests.fuzz import mutations

if "--atheris" in sys.argv:  # it instruments modules when they are imported
    import atheris

    with atheris.instrument_imports(include=["revelio_jax"]):
        from tests.fuzz import targets
else:
    from tests.fuzz import targets

SECONDS, MEMORY = 10, 2 << 20  # of one input; KiB over the memory at the start


def fuzz(target: targets.Target, seconds: float, seed: int, out: pathlib.Path) -> dict[str, int]:
    """Mutate the seeds for some seconds. Return how many inputs were tried, accepted and failed."""
    draw, end = random.Random(seed), time.monotonic() + seconds
    counts = {"tried": 0, "accepted": 0, "failed": 0}
    corpus = list(target.seeds)
    seen: set[str] = set()
    while time.monotonic() < end:
        data = mutations.mutate(draw.choice(corpus), draw)
        counts["tried"] += 1
        signal.alarm(SECONDS)
        try:
            if targets.run(target, data):
                counts["accepted"] += 1
                if len(corpus) < 200 and len(data) < 100_000:
                    corpus.append(data)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} {last.filename}:{last.lineno}"
            if place not in seen:
                seen.add(place)
                counts["failed"] += 1
                keep(data, out, place, error)
        finally:
            signal.alarm(0)
    return counts


def keep(data: bytes, out: pathlib.Path, place: str, error: Exception) -> None:
    """Write a failing file and print its error."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / hashlib.sha256(data).hexdigest()[:16]
    file.write_bytes(data)
    print(f"FAILED {place}: {str(error)[:200]}; input: {file}", file=sys.stderr, flush=True)


def with_atheris(target: targets.Target, seconds: float, seed: int, out: pathlib.Path) -> None:
    """Fuzz one target with libFuzzer, which ends the process and prints its own statistics."""
    import atheris

    corpus = out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(data)
    draw = random.Random(seed)

    def mutate(data: bytes, largest: int, _: int) -> bytes:
        return mutations.mutate(data, draw)[:largest] if draw.random() < 0.5 else atheris.Mutate(data, largest)

    def check(data: bytes) -> None:
        targets.run(target, data)

    limits = [f"-max_total_time={round(seconds)}", f"-timeout={SECONDS}", "-rss_limit_mb=4096", "-max_len=300000"]
    arguments = [sys.argv[0], *limits, f"-seed={seed + 1}", f"-artifact_prefix={out}/", "-print_final_stats=1"]
    atheris.Setup([*arguments, str(corpus)], check, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="for all targets together")
    parser.add_argument("--targets", help="names, separated by commas; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("fuzz"))
    parser.add_argument("--atheris", action="store_true", help="use atheris, for one target")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    def stop(*_) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    if not options.atheris:  # libFuzzer has its own handler
        signal.signal(signal.SIGALRM, stop)
    with targets.in_temporary_folder() as all_targets:
        names = options.targets.split(",") if options.targets else list(all_targets)
        if unknown := set(names) - set(all_targets):
            parser.error(f"unknown target {min(unknown)}; allowed: {', '.join(all_targets)}")
        if options.atheris:
            if len(names) != 1:
                parser.error("--atheris needs one --targets")
            with_atheris(all_targets[names[0]], options.seconds, options.seed, options.out / names[0])
        failed, start = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print("| reader | inputs | accepted | failed | peak MiB over the start |\n|---|---|---|---|---|")
        for name in names:
            counts = fuzz(all_targets[name], options.seconds / len(names), options.seed, options.out / name)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
            failed += counts["failed"] + (grown > MEMORY)
            print(
                f"| {name} | {counts['tried']} | {counts['accepted']} | {counts['failed']} | {grown >> 10} |",
                flush=True,
            )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
