"""Pictures and latents that mode generate keeps beside the rows: STORE/images/ID.png, latents/ID.npy."""

import io
import typing

import numpy as np
import PIL.Image
import tensorstore as ts

from extract.jobs import Row
from revelio_jax.config import ExtractConfig
from revelio_jax.store import check, layout

if typing.TYPE_CHECKING:
    import torch


def save(
    extract: ExtractConfig, batch: list[Row], pictures: list[PIL.Image.Image], latents: "torch.Tensor | None"
) -> None:
    """Write what is asked for, before the shard's marker says that it is there."""
    kvstore = layout.open_kvstore(extract.store)
    writes: list[ts.Future] = []
    for i, sample in enumerate(batch):
        if extract.save_images:
            png = io.BytesIO()
            pictures[i].save(png, "png")
            writes.append(kvstore.write(_picture(sample["id"]), png.getvalue()))
        if extract.save_latents:
            npy = io.BytesIO()
            np.save(npy, latents[i].float().cpu().numpy())
            writes.append(kvstore.write(_latents(sample["id"]), npy.getvalue()))
    for write in writes:
        write.result()


def fault(store: check.StoreState, shard: int) -> str:
    """The first file of a shard that is gone or cannot be read, as a line; "" where all can."""
    extract = store.plan.get("extract", {})
    for number in store.samples(shard):
        for asked, name, read in (
            ("save_images", _picture(number), lambda file: PIL.Image.open(file).verify()),
            ("save_latents", _latents(number), np.load),
        ):
            try:
                if extract.get(asked):
                    read(io.BytesIO(store.kvstore.read(name).result().value))
            except Exception:  # decoders of broken files raise whatever they like
                return f"{name} is gone or broken"
    return ""


def _picture(number: int) -> str:
    return f"images/{number:08d}.png"


def _latents(number: int) -> str:
    return f"latents/{number:08d}.npy"
