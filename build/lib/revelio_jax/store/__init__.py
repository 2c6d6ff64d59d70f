"""The activation store: what extraction writes and training reads. numpy and TensorStore only.

    STORE/manifest.json        written last: a store without it is unfinished
    STORE/plan.json            what the store will hold; a second run must agree with it
    STORE/samples.parquet      a row a sample: id, prompt, labels
    STORE/shards/00000.json    one a finished shard: rows and statistics of every site
    STORE/.locks/              who is writing it; gone when it is finished
    STORE/<site>/activations   zarr3 [rows, d], sharded
    STORE/<site>/{sample,position,timestep}   zarr3 [rows], int32

Shard i holds the samples [i S, (i + 1) S) and the array rows from i R on, valid rows first; R is the
``shard_rows`` of the site. Rows that were dropped as non-finite leave a gap at the end of their
shard, with sample -1.
"""

from revelio_jax.store.locks import Worker
from revelio_jax.store.reader import SiteReader, Store, open_store
from revelio_jax.store.writer import SitePlan, StorePlan, StoreWriter

__all__ = ["SitePlan", "SiteReader", "Store", "StorePlan", "StoreWriter", "Worker", "open_store"]
