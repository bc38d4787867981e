"""Reads PyTorch weight files without PyTorch, and without running anything they contain.

``torch.save`` writes a pickle that describes the tensors and, beside it, the raw numbers. A pickle
is a small program, so it is run only through an allow-list: it can name ordered dictionaries,
storages and tensors, and what it names stays a plain description (``_Storage``, ``_Tensor``) until
every number in it has been checked against what the file really holds. Formats:

- legacy (PyTorch before 1.6): pickles of a magic number, the protocol version, system facts, the
  state dict and the list of storage keys; then each storage as an int64 count and its elements;
- zip (since 1.6): ``NAME/data.pkl`` for the state dict and ``NAME/data/KEY`` for each storage.

Source: ``torch/serialization.py`` (``_legacy_load``, ``_load``), ``torch/_utils.py``
(``_rebuild_tensor_v2``) and ``torch/_weights_only_unpickler.py`` (what files older than version 0.4
name: ``_rebuild_tensor``, ``Parameter``) of PyTorch.
"""

import io
import math
import os
import pickle
import zipfile
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_MAGIC_BYTES = _LEGACY_MAGIC.to_bytes(10, "little")  # within the file's first pickle
_LEGACY_PROTOCOL = 1001
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_EXPECTED = "Expected a state dict that PyTorch wrote with torch.save(model.state_dict(), path)."

_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}

# What a file starts with, for the message to somebody who gave the wrong one.
_SIGNATURES = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file: Keras weights load with model.load_weights(path)"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"\x1f\x8b", "a gzip archive: unpack it first"),
    (b"\x80", "a pickle, but not one that torch.save wrote (nothing in it was executed)"),
)


class CheckpointError(ValueError):
    """A file is not a PyTorch state dict that can be read safely; says what was found."""


class _Storage(NamedTuple):
    """A run of numbers that the pickle says the file holds."""

    key: str
    kind: str
    count: int


class _Tensor(NamedTuple):
    """What the pickle says about a tensor; unchecked, and of any type, until `_array`."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


def read_torch_checkpoint(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch state dict (``.pth``, ``.pt``); PyTorch is not needed.

    A state dict that is wrapped as ``{"state_dict": ...}``, ``{"model_state_dict": ...}`` or
    ``{"model": ...}`` is unwrapped. Nothing that a file contains is executed.

    Args:
        path: A file in the legacy or the zip format of ``torch.save``.

    Returns:
        Tensor name -> array of the tensor's shape and dtype, in the file's order. Arrays are
        read-only views of their storage, which is the only memory that they cost: copy to change.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        CheckpointError: If the file is something else, is damaged or cut short, or its pickle
            names anything but tensors. The message says what was found.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path!r}. {_EXPECTED}")
    if os.path.isdir(path):
        raise CheckpointError(f"{path!r} is a directory. {_EXPECTED}")
    with open(path, "rb") as file:
        try:
            root, buffers = _read(file)
            return {name: _array(name, t, buffers) for name, t in _state_dict(root).items()}
        except CheckpointError as error:
            raise CheckpointError(f"Cannot read {path!r}: {error}. {_EXPECTED}") from error
        except Exception as error:  # pickle and zipfile raise nearly anything on damaged bytes
            found = f"it is damaged or cut short ({type(error).__name__}: {error})"
            raise CheckpointError(f"Cannot read {path!r}: {found}. {_EXPECTED}") from error


def _read(file: BinaryIO) -> tuple[Any, dict[str, tuple[_Storage, bytes]]]:
    """Returns the unpickled description and, by key, each storage with its bytes."""
    head = file.read(64)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(file)
    if _LEGACY_MAGIC_BYTES in head:
        return _read_legacy(file)
    raise CheckpointError(f"it is {_describe(head)}")


def _describe(head: bytes) -> str:
    if not head:
        return "an empty file"
    for signature, description in _SIGNATURES:
        if head.startswith(signature):
            return description
    if head.lstrip().startswith(b"<"):
        return "an HTML or XML page, often what a failed download leaves"
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"a text file that begins {head[:24].decode('ascii')!r}"
    return f"a file that begins {head[:8]!r}, which is no known format"


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, tuple[_Storage, bytes]]]:
    magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _LEGACY_MAGIC or protocol != _LEGACY_PROTOCOL:
        raise CheckpointError(f"it has magic number {magic!r} and protocol version {protocol!r}")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("it was not written on a little-endian machine")
    unpickler = _Unpickler(file)
    root = unpickler.load()
    buffers = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages.get(key)
        if storage is None:
            raise CheckpointError(f"it lists a storage {key!r} that no tensor uses")
        count = int.from_bytes(_read_exactly(file, 8), "little", signed=True)
        if count != storage.count:
            raise CheckpointError(f"storage {key!r} has {count} elements, not {storage.count}")
        buffers[key] = storage, _read_exactly(file, _bytes(storage))
    return root, buffers


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    left = _file_size(file) - file.tell()
    if size > left:  # asked first, so that a false size cannot allocate
        raise CheckpointError(f"it is cut short: {size} bytes should follow, {left} do")
    return file.read(size)


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, tuple[_Storage, bytes]]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        folders = [
            name.removesuffix("data.pkl")
            for name in names
            if name.endswith("/data.pkl") and name.count("/") == 1
        ]
        if len(folders) != 1:
            raise CheckpointError(f"it is a zip archive of {names[:4]} without one NAME/data.pkl")
        folder = folders[0]
        if f"{folder}constants.pkl" in names:
            raise CheckpointError("it is a TorchScript program (torch.jit.save)")
        if f"{folder}byteorder" in names:
            order = _member(archive, f"{folder}byteorder")
            if order != b"little":
                raise CheckpointError(f"its byte order is {order[:16]!r}, not little-endian")
        unpickler = _Unpickler(io.BytesIO(_member(archive, f"{folder}data.pkl")))
        root = unpickler.load()
        sizes = {key: _bytes(storage) for key, storage in unpickler.storages.items()}
        if sum(sizes.values()) > _file_size(file):
            raise CheckpointError(f"its tensors need {sum(sizes.values())} bytes, more than it has")
        buffers = {
            key: (storage, _member(archive, f"{folder}data/{key}", sizes[key]))
            for key, storage in unpickler.storages.items()
        }
        return root, buffers


def _member(archive: zipfile.ZipFile, name: str, size: int | None = None) -> bytes:
    """Reads a member that is stored as it is: compressed ones could swell without limit."""
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise CheckpointError(f"it is incomplete: {name!r} is not in the archive") from None
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"its member {name!r} is compressed, which torch.save never does")
    if size is not None and info.file_size != size:
        raise CheckpointError(f"its member {name!r} has {info.file_size} bytes, not {size}")
    return archive.read(info)


def _bytes(storage: _Storage) -> int:
    return storage.count * _DTYPES[storage.kind].itemsize


def _file_size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


class _Dict(dict):
    """Stands for OrderedDict, whose attributes a pickle could set, `items` among them."""

    __slots__ = ()

    def __setstate__(self, state):
        """Drops the state: PyTorch keeps the versions of the layers there (``_metadata``)."""


class _Parameter:
    """Stands for the parameters of models, which PyTorch saved as such before version 0.4."""

    __slots__ = ("data",)

    def __new__(cls, data, *_):
        parameter = super().__new__(cls)
        parameter.data = data
        return parameter

    def __setstate__(self, state):
        """Drops the state: whether it needs a gradient, and its hooks."""


class _Unpickler(pickle.Unpickler):
    """Unpickles descriptions of tensors and nothing else."""

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Exact strings: no attribute is looked up and no module imported, whatever is named. What
        # is returned is made anew, since a pickle may set attributes on it (the BUILD opcode).
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        if (module, name) == ("torch.nn.parameter", "Parameter"):
            return _Parameter
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: _Tensor(storage, offset, size, stride)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _DTYPES:
            return name
        raise CheckpointError(
            f"its pickle names {module}.{name}, which is not part of a plain state dict and was "
            "refused; nothing was executed"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage of ``("storage", kind, key, device, count[, view])``."""
        try:
            tag, kind, key, _, count, *view = pid
            valid = tag == "storage" and kind in _DTYPES and isinstance(key, str)
            valid = valid and _is_natural(count) and view in ([], [None])
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise CheckpointError(f"its pickle refers to {str(pid)[:80]}, not to a plain storage")
        storage = _Storage(key, kind, count)
        if self.storages.setdefault(key, storage) != storage:
            raise CheckpointError(f"its pickle describes storage {key!r} in two ways")
        return storage


def _state_dict(root: Any) -> dict[str, _Tensor]:
    """Returns the name -> tensor part of what was unpickled."""
    if not isinstance(root, dict):
        raise CheckpointError(f"it holds a {type(root).__name__.strip('_')}, not a state dict")
    inner = [key for key in _WRAPPERS if isinstance(root.get(key), dict)]
    if len(inner) > 1:
        raise CheckpointError(f"it holds several state dicts, {inner}: save the wanted one alone")
    tensors = root[inner[0]] if inner else root
    for name, tensor in tensors.items():
        if isinstance(tensor, _Parameter):
            tensor = tensors[name] = tensor.data
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            kind = type(tensor).__name__.strip("_")
            raise CheckpointError(f"its entry {str(name)[:80]!r} is a {kind}, not a tensor")
    return tensors


def _array(name: str, tensor: _Tensor, buffers: dict[str, tuple[_Storage, bytes]]) -> np.ndarray:
    """Returns the read-only array that `tensor` describes, once the description is checked."""
    storage, offset, size, stride = tensor
    if not isinstance(storage, _Storage) or storage.key not in buffers:
        raise CheckpointError(f"tensor {name!r} has no storage in the file")
    kept, data = buffers[storage.key]
    valid = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not valid or not all(map(_is_natural, (offset, *size, *stride))):
        raise CheckpointError(f"tensor {name!r} has a malformed offset, size or stride")
    # Strides of axes of length 0 or 1 never move, and may be any number: NumPy wants small ones.
    steps = [step if length > 1 else 0 for step, length in zip(stride, size, strict=True)]
    last = offset + sum(step * (length - 1) for step, length in zip(steps, size, strict=True))
    empty = 0 in size
    if math.prod(size) > kept.count or (offset > kept.count if empty else last >= kept.count):
        raise CheckpointError(
            f"tensor {name!r} (size {size}, stride {stride}, offset {offset}) reaches outside its "
            f"storage of {kept.count} elements"
        )
    dtype = _DTYPES[kept.kind]
    if empty:
        return np.empty(size, dtype)
    strides = [step * dtype.itemsize for step in steps]
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, strides)  # checks bounds again


def _is_natural(value: Any) -> bool:
    return type(value) is int and value >= 0
