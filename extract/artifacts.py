"""Images and latents that mode generate saves next to the rows: STORE/images/ID.png and STORE/latents/ID.npy."""

import io
import typing

import numpy as np
import PIL.Image
import tensorstore as ts

from extract.jobs import Sample
from revelio_jax.config import ExtractConfig
from revelio_jax.store import check, layout

if typing.TYPE_CHECKING:
    import torch


def save(
    extract: ExtractConfig, batch: list[Sample], images: list[PIL.Image.Image], latents: "torch.Tensor | None"
) -> None:
    """Write the files that config.extract.save_images and save_latents enable, and wait until they are written.

    ``latents`` are [sample, channel, height, width]. The shard's marker is written later, so a marked shard has all
    of its files.
    """
    kvstore = layout.open_kvstore(extract.store)
    writes: list[ts.Future[typing.Any]] = []
    for i, sample in enumerate(batch):
        if extract.save_images:
            png = io.BytesIO()
            images[i].save(png, "png")
            writes.append(kvstore.write(layout.image_key(sample["id"]), png.getvalue()))
        if extract.save_latents and latents is not None:
            npy = io.BytesIO()
            np.save(npy, latents[i].float().cpu().numpy())
            writes.append(kvstore.write(layout.latents_key(sample["id"]), npy.getvalue()))
    for write in writes:
        write.result()


def fault(store: check.StoreState, shard: int) -> str:
    """Return a line about the first missing or broken file of a shard, or "" if all files can be read."""
    extract = store.plan.get("extract", {})
    for number in store.samples(shard):
        for field, key, decode in (
            ("save_images", layout.image_key(number), lambda file: PIL.Image.open(file).verify()),
            ("save_latents", layout.latents_key(number), np.load),
        ):
            try:
                if extract.get(field):
                    decode(io.BytesIO(store.kvstore.read(key).result().value))
            except Exception:  # for broken files, decoders raise exceptions of many classes
                return f"{key} is missing or broken"
    return ""
