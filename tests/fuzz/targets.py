"""Readers of files that others may have written, as functions of the bytes of one file.

A target may raise InputError or EnvironmentFailure with a message of one line, and nothing else.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save_file

from revelio_jax import checksums, cli, json_text
from revelio_jax.config import Config, resolve
from revelio_jax.errors import EnvironmentFailure, InputError, single_line
from revelio_jax.inputs.images import read_images
from revelio_jax.inputs.prompt_sets import read_prompt_set
from revelio_jax.inputs.prompts import read_prompts
from revelio_jax.pipelines import source
from revelio_jax.sae_folder.reader import read_folder
from revelio_jax.store import SitePlan, StorePlan, StoreWriter, check, open_store
from tests.helpers import MINIATURES

D, F, ROWS = 4, 8, 32


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader: ``read`` gets the bytes of a file; ``seeds`` are valid files."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]


def run(target: Target, data: bytes) -> bool:
    """Give bytes to a reader. Return whether it accepts them. Any error but an InputError of one line is raised."""
    try:
        target.read(data)
    except (InputError, EnvironmentFailure) as error:
        line = single_line(str(error))
        if not line:
            raise AssertionError("an empty message") from error
        return False
    return True


def targets(folder: pathlib.Path) -> dict[str, Target]:
    """Return all targets by name. They write their files into ``folder``."""
    sae, store = folder / "sae", _write_store(folder / "store")
    cfg = _write_sae(sae, "sae_weights.safetensors")
    sparse_cfg = _write_sae(folder / "sparsify", "sae.safetensors")
    (folder / "images").mkdir()
    PIL.Image.new("RGB", (9, 7)).save(folder / "images" / "a.png")
    model = folder / "model"
    shutil.copytree(MINIATURES / "sd", model, ignore=shutil.ignore_patterns("*.safetensors", "*.csv"))

    def replaced(path: pathlib.Path, read: Callable[[], object], *others: bytes) -> Target:
        """Return a target that reads with other bytes in ``path``, which then gets its own bytes again."""
        valid = path.read_bytes()

        def with_bytes(data: bytes) -> object:
            path.write_bytes(data)
            try:
                return read()
            finally:
                path.write_bytes(valid)

        return Target(with_bytes, (*{valid, _unsealed(valid)}, *others))

    def read_store() -> None:
        opened = open_store(str(store))
        for name in opened.site_names:
            site = opened.site(name)
            for start, stop in site.chunks[:3]:
                site.read(start, stop)
                site.read_index("sample", start, stop)

    def verify() -> list[object]:
        return list(check.faults(check.read_state(str(store))))

    def read_config(path: pathlib.Path) -> Config:
        return resolve(cli.load(str(path)))

    def prompts(suffix: str) -> Callable[[], object]:
        return lambda: read_prompts(str(folder / f"prompts{suffix}"))

    rows = [{"prompt": "a red apple", "style": "flat", "n": 1}, {"prompt": "", "style": None, "n": -2}]
    (folder / "prompts.txt").write_text("a red apple\n\nan owl\r\n")
    (folder / "prompts.csv").write_text('prompt,style\n"a, b",flat\n"",""\n')
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows * 9), folder / "prompts.parquet")
    (folder / "config.json").write_text(Config().to_json())
    (folder / "set.json").write_text('{"images": [], "annotations": [{"image_id": 1, "id": 2, "caption": "an owl"}]}')
    sets = (
        b'[{"prompt": "an owl", "nouns": ["owl"], "index": 3}]',
        b'[{"prompt": "an owl", "case_number": 1, "source": "a", "evaluation_seed": 7, "evaluation_guidance": 7.5}]',
        b'[{"noun": "owl", "similarity": 0.5}]',
        b'[{"original_prompt": "[owl]", "editing_prompt": "", "editing_type_id": "1", "original_gsam_prompt": "",'
        b' "editing_gsam_prompt": ""}]',
    )
    return {
        "command_line": Target(_parse, (b"--config.train.steps=3\n--config.sae.prefixes=0.5,1", b"--config.run=")),
        "config_json": replaced(folder / "config.json", lambda: read_config(folder / "config.json"), b'{"train": {}}'),
        "cfg_json": replaced(sae / "cfg.json", lambda: read_folder(sae), *cfg),
        "sparsify_cfg": replaced(
            folder / "sparsify" / "cfg.json", lambda: read_folder(folder / "sparsify", "a"), *sparse_cfg
        ),
        "safetensors": replaced(sae / "sae_weights.safetensors", lambda: read_folder(sae)),
        "manifest": replaced(store / "manifest.json", read_store),
        "plan": replaced(store / "plan.json", verify),
        "marker": replaced(store / "shards" / "00001.json", verify),
        "zarr_json": replaced(store / "a.b" / "activations" / "zarr.json", read_store),
        "zarr_index_json": replaced(store / "a.b" / "sample" / "zarr.json", read_store),
        "shard": replaced(store / "a.b" / "activations" / "c" / "0" / "0", read_store),
        "samples_parquet": replaced(store / "samples.parquet", lambda: open_store(str(store)).samples),
        "prompts_txt": replaced(folder / "prompts.txt", prompts(".txt")),
        "prompts_csv": replaced(folder / "prompts.csv", prompts(".csv")),
        "prompts_jsonl": replaced(folder / "prompts.jsonl", prompts(".jsonl")),
        "prompts_parquet": replaced(folder / "prompts.parquet", prompts(".parquet")),
        "prompt_set": replaced(folder / "set.json", lambda: read_prompt_set(str(folder / "set.json")), *sets),
        "image": replaced(folder / "images" / "a.png", lambda: _load(folder / "images"), *_images()),
        "model_index": replaced(model / "model_index.json", lambda: source.find(str(model), None, "sd")),
    }


@contextlib.contextmanager
def in_temporary_folder():
    """Yield all targets, whose files are in a temporary folder in memory if the machine has one."""
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield targets(pathlib.Path(folder))


def _unsealed(data: bytes) -> bytes:
    """Return JSON without its checksum, because a reader refuses every change of a file with one."""
    try:
        return json.dumps(checksums.unsealed(json_text.parse_object(data))).encode()
    except ValueError:
        return data


def _parse(data: bytes) -> object:
    arguments = [line.decode("utf-8", "surrogateescape").replace("\0", "") for line in data.split(b"\n")]
    return cli.parse(["a.command", "--config=mini_sd", *(a for a in arguments if a not in ("-h", "--help"))], "doc")


def _load(folder: pathlib.Path) -> object:
    return read_images(str(folder), "image", None, "train").load(0, 8, 8)


@functools.cache
def _images() -> tuple[bytes, ...]:
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, f"a.{end}") for end in ("jpg", "webp", "gif", "bmp", "tiff", "ppm")]
        for file in files:
            PIL.Image.new("RGB", (9, 7), (9, 99, 199)).save(file)
        return tuple(file.read_bytes() for file in files)


def _write_sae(folder: pathlib.Path, weights: str) -> tuple[bytes, ...]:
    """Write an SAE folder and return other valid cfg.json of it."""
    folder.mkdir()
    W = np.random.default_rng(0).normal(size=(D, F)).astype(np.float32)
    if weights == "sae.safetensors":
        tensors = {"encoder.weight": W.T.copy(), "encoder.bias": W[0] * 0, "W_dec": W.T.copy(), "b_dec": W[:, 0] * 0}
        cfg = {"d_in": D, "num_latents": F, "k": 2, "activation": "topk", "expansion_factor": 2}
        others = ({"d_in": D, "expansion_factor": 2, "k": 2},)
    else:
        tensors = {"W_enc": W, "b_enc": W[0] * 0, "W_dec": W.T.copy(), "b_dec": W[:, 0] * 0}
        cfg = {"architecture": "topk", "d_in": D, "d_sae": F, "k": 2, "metadata": {"site": "a.b", "family": "sd"}}
        others = (cfg | {"architecture": "standard", "k": None, "apply_b_dec_to_input": False},)
    save_file(tensors, folder / weights)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return tuple(json.dumps(other).encode() for other in others)


def _write_store(folder: pathlib.Path) -> pathlib.Path:
    samples = [{"id": i, "prompt": f"prompt {i}"} for i in range(8)]
    plan = StorePlan((SitePlan("a.b", D, (ROWS, ROWS)),), "float32", 8, 4, 8, {"model": {"id": "x"}, "extract": {}})
    writer = StoreWriter(str(folder), plan, samples)
    rows = np.random.default_rng(0).normal(size=(ROWS, D)).astype(np.float32)
    for index in range(2):
        position = np.arange(ROWS, dtype=np.int32)
        arrays = {"activations": rows, "sample": index * 4 + position // 8, "position": position % 8}
        writer.write_shard(index, {"a.b": arrays | {"timestep": np.zeros_like(position)}})
    writer.finish()
    return folder
