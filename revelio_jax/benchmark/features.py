"""Compute the features of images and texts for :mod:`revelio_jax.benchmark.quality`, with weights of a user's folder.

Nothing is downloaded. Images are uint8 [N, height, width, 3]. Features of many images can be computed in parts and
concatenated.
"""

import collections.abc
import pathlib
import typing
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import torch
from safetensors.torch import load_file
from torch import nn

from revelio_jax.benchmark.quality import lpips_distance
from revelio_jax.errors import InputError

INCEPTION = "inception-2015-12-05.pt"
BATCH = 32  # images


class Inception:
    """The InceptionV3 of FID, from a folder with inception-2015-12-05.pt, a TorchScript file of StyleGAN2-ADA.

    Scaling and features are those of clean-fid's mode "clean": every channel is scaled to 299 pixels by Pillow's
    antialiased bicubic filter in float32. Source: Parmar et al. (2022), arXiv 2104.11222. The tests compare with the
    package clean-fid, which is not needed to compute FID.
    """

    def __init__(self, folder: str, device: torch.device | None = None):
        """Load the network. Raise InputError if the file is missing or is not this network.

        Load only files that you trust: TorchScript can run any operation of torch.
        """
        _require_folder("FID", folder, INCEPTION)
        path = pathlib.Path(folder, INCEPTION)
        try:
            network: typing.Any = torch.jit.load(path, map_location=device or "cpu").eval()
            self.layers = network.layers
        except (RuntimeError, AttributeError) as error:
            raise InputError(f"FID: {path} is not the TorchScript file of InceptionV3") from error
        self.device = device

    @torch.inference_mode()
    def images(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs of the last pooling layer, float32 [N, 2048]."""
        parts: list[np.ndarray] = []
        for part in _parts(images):
            pixels = torch.from_numpy(np.stack([_scaled(image) for image in part])).to(self.device)
            parts.append(self.layers((pixels - 128) / 128).flatten(1).float().cpu().numpy())
        return np.concatenate(parts)


def _scaled(image: np.ndarray) -> np.ndarray:
    """Return an image [height, width, 3] as float32 [3, 299, 299] in 0 .. 255."""
    channels = [PIL.Image.fromarray(image[:, :, i].astype(np.float32)) for i in range(3)]
    resized = [channel.resize((299, 299), PIL.Image.Resampling.BICUBIC) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized]).clip(0, 255)


class ImageEncoder:
    """An image model of transformers in a folder, for example a CLIP or a DINO."""

    def __init__(self, folder: str, device: torch.device | None = None):
        """Load the model and its image processor. Raise InputError if the folder has none."""
        import transformers

        _require_folder("features of images", folder, "config.json")
        self.folder = folder
        try:
            model: typing.Any = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
            self.processor: typing.Any = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder!r} has no image model that transformers can load: {error}") from error
        self.model = model.float().eval().to(device)
        self.device = device

    @torch.inference_mode()
    def images(self, images: np.ndarray) -> np.ndarray:
        """Return one vector per image, float32 [N, features]: CLIP's projected embedding, otherwise the pooled output.

        Raise InputError if the model returns neither.
        """
        method = getattr(self.model, "get_image_features", self.model)
        parts: list[np.ndarray] = []
        for part in _parts(images):
            inputs = self.processor(images=[PIL.Image.fromarray(image) for image in part], return_tensors="pt")
            parts.append(self._vectors(method(pixel_values=inputs["pixel_values"].to(self.device))))
        return np.concatenate(parts)

    def _vectors(self, output: typing.Any) -> np.ndarray:
        """Return the vectors [N, features] of an output, which is a tensor or an object, depending on the model."""
        vectors = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
        if vectors is None or vectors.ndim != 2:
            raise InputError(f"the model in {self.folder!r} gives no vector per image or text")
        return vectors.float().cpu().numpy()


class ClipEncoder(ImageEncoder):
    """A CLIP in a folder, with its tokenizer, for CLIP scores."""

    def __init__(self, folder: str, device: torch.device | None = None):
        """Load the model. Raise InputError if the folder has no CLIP with a tokenizer."""
        import transformers

        super().__init__(folder, device)
        try:
            self.tokenizer: typing.Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder!r} has no tokenizer, which CLIP scores need: {error}") from error
        if not hasattr(self.model, "get_text_features"):
            raise InputError(f"the model in {folder!r} is a {type(self.model).__name__}; CLIP scores need a CLIP")

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Return the projected embedding of each text, float32 [N, features]. Longer texts are cut to 77 tokens."""
        most = self.model.config.text_config.max_position_embeddings
        parts: list[np.ndarray] = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]), padding=True, truncation=True, max_length=most, return_tensors="pt"
            ).to(self.device)
            output = self.model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            parts.append(self._vectors(output))
        return np.concatenate(parts)


# Convolutions of the two networks of LPIPS, as in torchvision: their numbers in `features`, and the layers measured.
_ALEXNET = {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}  # number -> (stride, padding)
_VGG16 = dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1))
_POOLED_BEFORE = {"alexnet": (3, 6), "vgg16": (5, 10, 17, 24)}
_MEASURED = {"alexnet": (0, 3, 6, 8, 10), "vgg16": (2, 7, 14, 21, 28)}
_POOL = {"alexnet": (3, 2), "vgg16": (2, 2)}  # size, stride
_LPIPS_MEAN = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)


class LpipsNetwork:
    """AlexNet or VGG16 with the weights of LPIPS's channels, from a folder.

    The folder has two files: the network's weights as torchvision publishes them (with ``features.0.weight``), and the
    weights of the channels as the packages lpips and torchmetrics ship them (with ``lin0.model.1.weight``). Both are
    .safetensors, .pth or .pt; the latter are opened without running code in them. The number of convolutions tells
    AlexNet from VGG16.
    """

    def __init__(self, folder: str, device: torch.device | None = None):
        """Load both files. Raise InputError if one is missing or does not fit."""
        _require_folder("LPIPS", folder)
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(pathlib.Path(folder).iterdir()):
            if path.suffix in (".safetensors", ".pth", ".pt"):
                tensors |= _tensors(path)
        numbers = {
            int(name.split(".")[1]) for name in tensors if name.startswith("features.") and name.endswith(".weight")
        }
        convolutions = {frozenset(_ALEXNET): ("alexnet", _ALEXNET), frozenset(_VGG16): ("vgg16", _VGG16)}
        if frozenset(numbers) not in convolutions:
            raise InputError(
                f"the LPIPS folder {folder!r} has no weights of AlexNet or VGG16 with torchvision's names, for example "
                "features.0.weight"
            )
        self.name, self._convolutions = convolutions[frozenset(numbers)]
        self._tensors = {name: tensor.float().to(device) for name, tensor in tensors.items()}
        self.device = device
        self.weights = [self._weight(layer, number) for layer, number in enumerate(_MEASURED[self.name])]

    def _weight(self, layer: int, number: int) -> np.ndarray:
        name, width = f"lin{layer}.model.1.weight", len(self._tensors[f"features.{number}.weight"])
        if name not in self._tensors:
            raise InputError(f"the LPIPS folder has no {name}; add the file of LPIPS's channel weights")
        weight_C = self._tensors[name].flatten().cpu().numpy()
        if len(weight_C) != width:
            raise InputError(f"{name} has {len(weight_C)} weights for the {width} channels of {self.name}")
        return weight_C

    @torch.inference_mode()
    def layers(self, images: np.ndarray) -> list[np.ndarray]:
        """Return the activations [N, C, H, W] of the measured layers."""
        pixels = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        mean, scale = (torch.tensor(v, device=self.device)[:, None, None] for v in (_LPIPS_MEAN, _LPIPS_SCALE))
        x_NCHW, measured = (pixels - mean) / scale, list[np.ndarray]()
        for number, (stride, padding) in self._convolutions.items():
            if number in _POOLED_BEFORE[self.name]:
                x_NCHW = nn.functional.max_pool2d(x_NCHW, *_POOL[self.name])
            weight, bias = (self._tensors[f"features.{number}.{part}"] for part in ("weight", "bias"))
            x_NCHW = nn.functional.relu(nn.functional.conv2d(x_NCHW, weight, bias, stride, padding))
            if number in _MEASURED[self.name]:
                measured.append(x_NCHW.cpu().numpy())
        return measured

    def distances(self, images: np.ndarray, plain: np.ndarray) -> np.ndarray:
        """Return the LPIPS distance of each image to the plain pipeline's image at the same seed, float64 [N].

        Raise InputError if the shapes differ or the images have fewer than 32 pixels a side.
        """
        _check(images)
        _check(plain)
        if images.shape != plain.shape or min(images.shape[1:3]) < 32:
            raise InputError(
                f"images are {images.shape} and {plain.shape}; LPIPS needs equal shapes of at least 32 pixels"
            )
        pairs = ((images[i : i + 1], plain[i : i + 1]) for i in range(len(images)))  # a layer can have 0.1 GB per image
        return np.concatenate([lpips_distance(self.layers(x), self.layers(y), self.weights) for x, y in pairs])


def _tensors(path: pathlib.Path) -> dict[str, torch.Tensor]:
    try:
        content = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # pickle, zip and safetensors raise errors of many classes
        raise InputError(f"{path} is not a file of weights: {type(error).__name__}") from error
    if not isinstance(content, collections.abc.Mapping):
        raise InputError(f"{path} is not a file of named tensors")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


def _parts(images: np.ndarray) -> Iterator[np.ndarray]:
    _check(images)
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]


def _check(images: np.ndarray) -> None:
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3 or not len(images):
        raise InputError(f"images are {images.dtype} {images.shape}; they must be uint8 [N, height, width, 3]")


def _require_folder(user: str, folder: str, *files: str) -> None:
    path = pathlib.Path(folder)
    if not path.is_dir():
        raise InputError(f"{user}: {folder!r} is not a folder; it must be a folder with the weights")
    if missing := [name for name in files if not (path / name).is_file()]:
        raise InputError(f"{user}: the folder {folder!r} has no {missing[0]}")
