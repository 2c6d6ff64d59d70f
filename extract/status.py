"""The reports of ``--status`` and ``--verify`` on a store. They load no model."""

import tqdm

from extract import artifacts
from revelio_jax.store import Worker, check, layout


def report(location: str | None, workers: int, verify: bool) -> bool:
    """Print the progress of a store. With ``verify``, also read all of it and print every fault.

    Return False if ``verify`` is set and the store is unfinished or has a fault, otherwise True. Raise InputError if
    the store does not exist.
    """
    store = check.read_state(location)
    _print_progress(store, workers)
    return _verify(store) if verify else True


def _print_progress(store: check.StoreState, workers: int) -> None:
    state = "finished" if store.manifest else "unfinished"
    samples = sum(len(store.samples(shard)) for shard in store.done)
    print(
        f"store {store.location} is {state}: {len(store.done):,} of {store.shards:,} shards, "
        f"{samples:,} of {store.plan['samples']:,} samples"
    )
    for name, site in store.plan["sites"].items():
        rows = sum(site["expected_rows"][shard] for shard in store.done)
        losses = ""
        if store.manifest:
            final = store.manifest["sites"][name]
            rows = final["rows"]
            losses = f"; {final['dropped']:,} dropped, samples skipped: {len(final.get('skipped', ())):,}"
        print(f"{name}: {rows:,} of {sum(site['expected_rows']):,} rows x {site['d']}{losses}")
    for worker in (Worker(number, workers) for number in range(workers)):
        missing = [shard for shard in range(store.shards) if worker.owns(shard) and shard not in store.done]
        line = f"missing shards: {_first(missing)}" if missing else "no shard is missing"
        print(f"{worker}: {line}" if workers > 1 else line)


def _verify(store: check.StoreState) -> bool:
    """Print every fault and the files to delete; return whether the store is finished and has no fault."""
    faults: dict[int | str, str] = {}  # by shard or file
    with tqdm.tqdm(total=len(store.done), desc="verify", unit="shard") as progress:
        for place, fault in check.faults(store):
            progress.update(place not in faults and isinstance(place, int))
            if not fault and isinstance(place, int):
                fault = artifacts.fault(store, place)
            if fault:
                faults[place] = fault
    for place, fault in faults.items():
        print(f"shard {place}: {fault}" if isinstance(place, int) else f"{place}: {fault}")
    if faults:
        files = {layout.shard_key(place) if isinstance(place, int) else place for place in faults}
        files |= {"manifest.json"} if store.manifest else set()
        print(f"to repair the store, delete {', '.join(sorted(files))} in {store.location} and extract again")
    elif store.manifest is None:
        print("the written shards are intact; the store is unfinished")
    else:
        print("the store is intact")
    return not faults and store.manifest is not None


def _first(shards: list[int], most: int = 20) -> str:
    return ", ".join(map(str, shards[:most])) + (", ..." if len(shards) > most else "")
