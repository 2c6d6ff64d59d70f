"""The activation store, which extraction writes and training reads. It needs only numpy, pyarrow and TensorStore.

    STORE/manifest.json        written last; a store without it is unfinished
    STORE/plan.json            the plan of the store; every run that writes the store must have the same plan
    STORE/samples.parquet      one row per sample: id, prompt or image, labels, tokens
    STORE/shards/00000.json    one per finished shard: rows and statistics of every site
    STORE/.locks/              locks of the workers; removed when the store is finished
    STORE/<site>/activations   zarr3 [rows, d], sharded
    STORE/<site>/{sample,position,timestep}   zarr3 [rows], int32

Shard i holds the samples [i S, (i + 1) S) and the array rows from i R on, valid rows first. R is the
``shard_rows`` of the site. Non-finite rows are dropped, which leaves a gap at the end of the shard with sample -1.
"""

from revelio_jax.store.json_files import Manifest, ModelRecord
from revelio_jax.store.locks import Worker
from revelio_jax.store.reader import SiteReader, Store, open_store
from revelio_jax.store.selection import copy_store
from revelio_jax.store.writer import SitePlan, StorePlan, StoreWriter

__all__ = [
    "Manifest",
    "ModelRecord",
    "SitePlan",
    "SiteReader",
    "Store",
    "StorePlan",
    "StoreWriter",
    "Worker",
    "copy_store",
    "open_store",
]
