"""What torchvision's networks compute: a program of its own, for torch and TensorFlow may not meet.

``python torch_reference.py FOLDER`` writes for each network its state dict in both formats of
``torch.save`` (NAME_legacy.pth, NAME_zip.pth) and what it computes (NAME_SIZE.npz). The tensors
depend on their names alone, so that the tests can make the same ones without torch. The large
layers of the classifiers of AlexNet and VGG are replaced by small ones: nothing here runs them.
"""

import sys
import zlib
from pathlib import Path

import numpy as np

MEAN, STDDEV = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ODD = 95  # odd, and odd again further down: pooling that rounds up and down differ
SIZES = {"alexnet": (224, ODD), "vgg16": (ODD,), "googlenet": (224, ODD)}
HEADS = {"one": (1024,), "two": (512, 512)}


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor with random values of its own, of which none is common to two names."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(7)
    if len(shape) > 1:  # keeps the scale of what passes through it
        return (rng.uniform(-1, 1, shape) * (6 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
    low = 0.5 if name.endswith(("running_var", "bn.weight")) else -0.5
    return rng.uniform(low, low + 1, shape).astype(np.float32)


def images(size: int) -> np.ndarray:
    """Two images (2, size, size, 3), RGB 0..255."""
    return np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.float32)


def _network(name):
    import torch
    import torchvision

    more = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    network = getattr(torchvision.models, name)(weights=None, **more).eval()
    for index, layer in enumerate(getattr(network, "classifier", ())):
        if isinstance(layer, torch.nn.Linear):
            network.classifier[index] = torch.nn.Linear(1, 1)
    state = network.state_dict()
    for key, value in state.items():
        value.copy_(torch.from_numpy(tensor(key, tuple(value.shape))))
    network.transform_input = name == "googlenet"  # as it is for the published weights
    return network


def _maps(name, network, pixels) -> dict:
    """The network's last maps, and those that the paper keeps."""
    if name != "googlenet":
        return {"last": network.features(pixels), "kept": network.features[:-1](pixels)}
    found = {}
    for key, layer in (("last", network.inception5b), ("kept", network.inception4e)):
        layer.register_forward_hook(lambda *call, key=key: found.update({key: call[2]}))
    found["logits"] = network(pixels)
    return found


def _with_heads(maps) -> dict:
    """The maps after the paper's new convolutions, by their number and groups."""
    import torch

    results = {}
    for head, units in HEADS.items():
        for groups in (1, 2):
            x = maps
            for number, count in enumerate(units, start=1):
                kernel = tensor(f"head{number}.weight", (count, x.shape[1] // groups, 3, 3))
                bias = tensor(f"head{number}.bias", (count,))
                x = torch.nn.functional.conv2d(
                    x, torch.from_numpy(kernel), torch.from_numpy(bias), padding=1, groups=groups
                ).relu()
            results[f"{head}{groups}"] = x
    return results


def main(folder: Path) -> None:
    """Writes all files."""
    import torch

    for name, sizes in SIZES.items():
        network = _network(name)
        for suffix, new in (("legacy", False), ("zip", True)):
            path = folder / f"{name}_{suffix}.pth"
            torch.save(network.state_dict(), path, _use_new_zipfile_serialization=new)
        for size in sizes:
            pixels = ((images(size) / 255 - MEAN) / STDDEV).astype(np.float32)
            with torch.no_grad():
                pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
                found = _maps(name, network, pixels)
                found |= _with_heads(found["kept"])
            arrays = {key: value.movedim(1, -1).numpy() for key, value in found.items()}
            np.savez(folder / f"{name}_{size}.npz", **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
