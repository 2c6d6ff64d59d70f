"""The rows of a live run: a store in the folder of the run, of which only some shards are on the disk at a time.

RUN/live holds the plan of the store, its held-out shards, and the shards of the current and the next block. The trainer
asks for the shards that the next steps need, and deletes the shards that no later step needs. Which shards these are
follows from the number of finished steps. A resumed run therefore asks again for shards that were deleted, and
extraction writes the same bytes again. Held-out shards are extracted first and stay. They also give the mean and the
variance of the rows.
"""

import dataclasses
import fractions
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from revelio_jax.config import Config
from revelio_jax.errors import EnvironmentFailure, InputError
from revelio_jax.store import SiteReader, Store, layout, object_storage
from revelio_jax.store.json_files import Manifest, Plan
from revelio_jax.store.writer import build_manifest
from revelio_jax.training import live_order, processes
from revelio_jax.training.extraction import Extraction
from revelio_jax.training.live_order import Split
from revelio_jax.training.loader import Order
from revelio_jax.training.mixture import Mixture, MixtureSource

POLL_S = 0.2  # between checks for SIGTERM while a read waits


class NotWritten(RuntimeError):
    """A read waited for a shard, but the trainer stopped reading."""


class Window:
    """The shards of a live store that are on the disk, and the process that writes them once :meth:`start` is called.

    ``folder`` is the store and ``site`` its only site.
    """

    def __init__(self, config: Config, run: pathlib.Path):
        self.folder, self.site = run / "live", config.extract.sites[0]
        self._config = config
        self._kvstore = layout.open_kvstore(str(self.folder))
        self._changed = threading.Condition()
        self._rows: dict[int, int] = {}  # valid rows of each shard on the disk
        self._requested: set[int] = set()
        self._kept: set[int] = set()
        self._extraction: Extraction | None = None
        self._is_ready, self._is_reading, self._has_warned = False, True, False
        self._error: Exception | None = None
        if self.plan() is not None:
            for shard in layout.done_shards(self._kvstore):
                self._add(shard)

    def plan(self) -> Plan | None:
        """Return the plan of the store, or None if it is not written yet. Raise InputError for another version."""
        plan = layout.read_plan(self._kvstore)
        if plan is not None:
            layout.check_version(str(self.folder), plan)
        return plan

    def has(self, shards: Iterable[int]) -> bool:
        """Return whether all these shards are on the disk."""
        return set(shards) <= set(self._rows)

    def start(self) -> Plan:
        """Start the extraction, unless it runs, and wait for the plan of the store. Raise the error of extraction."""
        if self._extraction is None:
            extract = dataclasses.replace(self._config.extract, store=str(self.folder), worker=0, workers=1)
            config = dataclasses.replace(self._config, extract=extract)
            self._extraction = Extraction(config, self._ready, self._add, self._end)
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready or self._error)
            if self._error:
                raise self._error
        plan = self.plan()
        assert plan is not None
        return plan

    def request(self, shards: Iterable[int]) -> None:
        """Ask for the shards that are missing, in order."""
        assert self._extraction is not None
        with self._changed:
            missing = [shard for shard in shards if shard not in self._rows and shard not in self._requested]
            self._requested |= set(missing)
        self._extraction.request(missing)

    def keep(self, shards: Sequence[int]) -> None:
        """Delete all other shards and ask for those of ``shards`` that are missing, in order."""
        if set(shards) == self._kept:
            return
        self._kept = set(shards)
        self._delete_others()
        self.request(shards)

    def wait(self, shard: int) -> int:
        """Wait until a shard is on the disk and return its number of valid rows.

        Raise the error of extraction, processes.Stopped after SIGTERM, or NotWritten if reading has stopped.
        """
        with self._changed:
            while shard not in self._rows:
                if self._error:
                    raise self._error
                if self._extraction is None:
                    raise InputError(
                        f"shard {shard} of {self.folder} is missing; revelio train with --config.train.resume=yes "
                        "extracts it again"
                    )
                if not self._is_reading:
                    raise NotWritten(shard)
                if processes.received_sigterm():
                    raise processes.Stopped
                self._changed.wait(POLL_S)
            return self._rows[shard]

    def set_reading(self, is_reading: bool) -> None:
        """Let reads wait for shards, or raise NotWritten."""
        with self._changed:
            self._is_reading = is_reading
            self._changed.notify_all()

    def close(self) -> None:
        """End the extraction. Delete a shard that it wrote although no step needs it any more."""
        self.set_reading(False)
        if self._extraction:
            self._extraction.close()
        if self._kept:
            self._delete_others()

    def _delete_others(self) -> None:
        """Delete the shards that :meth:`keep` was not called with."""
        with self._changed:
            for shard in set(self._rows) - self._kept:
                # The marker first, because it states that the rows exist.
                (self.folder / layout.shard_key(shard)).unlink(missing_ok=True)
                del self._rows[shard]
        for array in self.folder.glob(f"{self.site}/*/c"):
            for path in array.iterdir():  # also files that a killed extraction left
                number = path.name.partition(".")[0]
                if number.isdecimal() and int(number) not in self._kept:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _ready(self) -> None:
        with self._changed:
            self._is_ready = True
            self._changed.notify_all()

    def _add(self, shard: int) -> None:
        marker = layout.read_marker(self._kvstore, shard)
        if marker is None or self.site not in marker:
            # Not ignored: the trainer would wait for the shard without end.
            raise InputError(
                f"shard {shard} of {self.folder} has no rows of {self.site}; remove the folder, or choose another "
                "config.run"
            )
        part = marker[self.site]
        if (part["dropped"] or part.get("skipped")) and not self._has_warned:
            self._has_warned = True
            skipped = len(part.get("skipped", ()))
            print(
                f"warning: shard {shard} lacks {part['dropped']} rows that are not finite and {skipped} samples that "
                "cannot be read; other rows of the shard take their places; the same holds for later shards",
                file=sys.stderr,
            )
        with self._changed:
            self._rows[shard] = part["count"]
            self._requested.discard(shard)
            self._changed.notify_all()

    def _end(self, error: Exception) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class LiveSite(SiteReader):
    """The site of a live store. Reads wait until their shard is on the disk.

    Extraction drops rows that are not finite, and samples that it cannot read. Other rows of the same shard take their
    places, because the order of the rows is planned before they are extracted.
    """

    window: Window

    def start_into(self, start: int, rows: np.ndarray) -> Callable[[], None]:
        waits = [
            super(LiveSite, self).start_into(begin, rows[place : place + stop - begin])
            for begin, stop, place in self._parts(start, start + len(rows))
        ]

        def wait() -> None:
            for wait_for_part in waits:
                wait_for_part()

        return wait

    def start_index(self, name: str, start: int, stop: int) -> Callable[[], np.ndarray]:
        waits = [super(LiveSite, self).start_index(name, *part[:2]) for part in self._parts(start, stop)]
        return lambda: np.concatenate([wait() for wait in waits])

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the array rows [begin, stop) to read for the planned rows [start, stop), and where their values go."""
        shard = start // self.shard_rows
        first, valid = shard * self.shard_rows, self.window.wait(shard)
        if not valid:
            raise EnvironmentFailure(f"shard {shard} of {self.location} has no valid row; config.data.live needs some")
        place = start
        while place < stop:
            begin = first + (place - first) % valid
            count = min(stop - place, first + valid - begin)
            yield begin, begin + count, place - start
            place += count


@dataclasses.dataclass(frozen=True, eq=False)
class LiveMixture(Mixture):
    """The rows of a live run, with the interface of the stores of a run."""

    window: Window
    split: Split

    def prepare(self, order: Order, config: Config, step: int, dispatch_steps: int) -> None:
        live_order.check_blocks(order, config, dispatch_steps)
        self.window.start()
        self.release(order, config, step)

    def release(self, order: Order, config: Config, step: int) -> None:
        rows = [done * order.batch_size for done in (step, config.train.steps)]
        self.window.keep([*self.split.held_out, *live_order.stream_of(order).needed(*rows)])

    def start_reading(self) -> None:
        self.window.set_reading(True)

    def stop_reading(self) -> None:
        self.window.set_reading(False)

    def close(self) -> None:
        self.window.close()

    def describe(self) -> str:
        """Return a line about the shards on the disk."""
        (site,), (held_out, training, block) = self.sites, self.split
        shard_bytes = site.shard_rows * (site.d * self.dtype.itemsize + 4 * len(layout.INDEX_ARRAYS))
        most = len(held_out) + min(2 * block, len(training))
        blocks = -(-len(training) // block)
        order = "all are shuffled together" if blocks == 1 else f"each epoch extracts them again, in {blocks} blocks"
        return (
            f"live: {len(training)} shards to train on, {len(held_out)} held out; {order}; at most {most} shards, "
            f"{most * shard_bytes / 1e9:,.3g} GB, are in {self.window.folder}"
        )


def open_live(config: Config, run: pathlib.Path, extracts: bool) -> LiveMixture:
    """Return the rows of the live run in the folder ``run``.

    If the store has no held-out rows yet and ``extracts`` is True, start the extraction and wait for them. The caller
    closes the result. Raise InputError if the config cannot be used, or if the rows are missing.
    """
    config = check(config)
    window = Window(config, run)
    try:
        plan = window.plan()
        if plan is None or not window.has(live_order.split(plan, window.site, config).held_out):
            if not extracts:
                raise InputError(f"config.data.live is True, but {window.folder} has no rows yet; run revelio train")
            plan = window.start()
            held_out = live_order.split(plan, window.site, config).held_out
            window.request(held_out)
            print(f"live: extracting {len(held_out)} held-out shards, then those of the first steps", flush=True)
            for shard in held_out:
                window.wait(shard)
        return _mixture(window, plan, live_order.split(plan, window.site, config))
    except BaseException:
        window.close()
        raise


def check(config: Config) -> Config:
    """Return the config with the site to train on as its only site. Raise InputError if it does not fit a live run."""
    extract, data, run = config.extract, config.data, config.run or ""
    site = data.site or next(iter(extract.sites), "")
    refusals = {
        f"config.run is {run!r}; it must be a local folder": object_storage.is_remote(run),
        "config.mesh.distributed is True; it must be False, because a live run has one process": jax.process_count()
        > 1,
        f"config.data.site is {site!r}; config.extract.sites has {', '.join(extract.sites)}": site not in extract.sites,
        f"config.extract.workers is {extract.workers}; it must be 1 or None": (extract.workers or 1) > 1,
        "config.extract.save_images is True; it must be False, because images would fill the disk": extract.save_images,
        "config.extract.save_latents is True; it must be False, because they would fill the disk": extract.save_latents,
    }
    for text, is_refused in refusals.items():
        if is_refused:
            raise InputError(f"config.data.live is True and {text}")
    return dataclasses.replace(config, extract=dataclasses.replace(extract, sites=(site,)))


def _mixture(window: Window, plan: Plan, shards: Split) -> LiveMixture:
    """Return the mixture of one store: all planned rows, with the statistics of the held-out rows."""
    kvstore = layout.open_kvstore(str(window.folder))
    markers = [marker for shard in shards.held_out if (marker := layout.read_marker(kvstore, shard))]
    manifest: Manifest = build_manifest(plan, markers)
    expected = plan["sites"][window.site]["expected_rows"]
    manifest["sites"][window.site].update(rows=sum(expected), shard_valid_rows=expected)
    store = Store(str(window.folder), manifest, kvstore)
    reader = store.site()
    site = LiveSite(**vars(reader), window=window)
    source = MixtureSource(store.location, fractions.Fraction(1), (store,), (site,))
    return LiveMixture(site.name, site.d, (source,), window, shards)
