"""What ``python -m extract.run --status`` and ``--verify`` say of a store; no model is loaded."""

import tqdm

from extract import artifacts
from revelio_jax.store import Worker, check, layout


def report(location: str, workers: int, verify: bool) -> bool:
    """Print how far a store is and, if asked, what is wrong with it; returns whether all is as it should be.

    Without ``verify`` there is nothing to be wrong; with it an unfinished store is not good either.
    """
    store = check.find(location)
    _status(store, workers)
    return _verify(store) if verify else True


def _status(store: check.StoreState, workers: int) -> None:
    state = "finished" if store.manifest else "unfinished"
    samples = sum(len(store.samples(shard)) for shard in store.done)
    print(
        f"store {store.location} is {state}: {len(store.done):,} of {store.shards:,} shards, "
        f"{samples:,} of {store.plan['samples']:,} samples"
    )
    for name, site in store.plan["sites"].items():
        rows = sum(site["expected_rows"][shard] for shard in store.done)
        left_out = ""
        if store.manifest:
            found = store.manifest["sites"][name]
            rows = found["rows"]
            left_out = f"; {found['dropped']:,} dropped, samples skipped: {len(found.get('skipped', ())):,}"
        print(f"{name}: {rows:,} of {sum(site['expected_rows']):,} rows x {site['d']}{left_out}")
    for worker in (Worker(number, workers) for number in range(workers)):
        mine = [shard for shard in range(store.shards) if worker.owns(shard)]
        left = [shard for shard in mine if shard not in store.done]
        missing = f"missing: {_first(left)}" if left else "nothing is missing"
        print(f"{worker}: {missing}" if workers > 1 else missing)


def _verify(store: check.StoreState) -> bool:
    faults = {}
    with tqdm.tqdm(total=len(store.done), desc="verify", unit="shard") as progress:
        for where, fault in check.faults(store):
            progress.update(where not in faults and isinstance(where, int))
            if not fault and isinstance(where, int):
                fault = artifacts.fault(store, where)
            if fault:
                faults[where] = fault
    for where, fault in faults.items():
        print(f"shard {where}: {fault}" if isinstance(where, int) else f"{where}: {fault}")
    if faults:
        files = {layout.shard_key(where) if isinstance(where, int) else where for where in faults}
        files |= {"manifest.json"} if store.manifest else set()
        print(f"delete {', '.join(sorted(files))} in {store.location} and extract again: it is made anew")
    elif store.manifest is None:
        print("what is there is as it was written; the store is unfinished")
    else:
        print("all is as it was written")
    return not faults and store.manifest is not None


def _first(shards: list[int], most: int = 20) -> str:
    return ", ".join(map(str, shards[:most])) + (", ..." if len(shards) > most else "")
