"""Checkpoints are assembled here opcode by opcode: no test needs PyTorch."""

import io
import os
import pickle
import re
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cam_tf.networks.checkpoints import CheckpointError, read_torch_checkpoint

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2}}
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PARAMETER = b"ctorch.nn.parameter\nParameter\n"
ORDERED_DICT = b"ccollections\nOrderedDict\n)R"


def ops(value) -> bytes:
    """The opcodes that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


def storage(key="0", kind="FloatStorage", count=6, tail=b"") -> bytes:
    head = b"(" + ops("storage") + f"ctorch\n{kind}\n".encode() + ops(key) + ops("cpu")
    return head + ops(count) + tail + b"tQ"


def tensor(stored: bytes, offset=0, size=(6,), stride=(1,)) -> bytes:
    arguments = stored + ops(offset) + ops(size) + ops(stride) + ops(False) + ORDERED_DICT
    return REBUILD + b"(" + arguments + b"tR"


def mapping(entries: dict[str, bytes]) -> bytes:
    items = b"".join(ops(name) + value for name, value in entries.items())
    return ORDERED_DICT + b"(" + items + b"u"


def legacy(root: bytes, storages: dict[str, np.ndarray], system=SYSTEM) -> bytes:
    parts = [pickle.dumps(part, protocol=2) for part in (MAGIC, 1001, system)]
    parts += [b"\x80\x02" + root + b".", pickle.dumps(list(storages), protocol=2)]
    for values in storages.values():
        parts += [struct.pack("<q", values.size), values.tobytes()]
    return b"".join(parts)


def zipped(root: bytes, storages, order=b"little", compression=zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02" + root + b".")
        if order:
            archive.writestr("net/byteorder", order)
        for key, values in storages.items():
            archive.writestr(f"net/data/{key}", values.tobytes())
        archive.writestr("net/version", b"3\n")
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    def write_and_read(data: bytes):
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return read_torch_checkpoint(path)

    return write_and_read


FORMATS = pytest.mark.parametrize("write", [legacy, zipped])
SIX = np.array([0, 1, 2, 3, 4, 5], "<f4")


@FORMATS
def test_offset_size_and_stride_are_honoured(read, write):
    root = mapping(
        {
            "rows": tensor(storage(), 0, (2, 3), (3, 1)),
            "columns": tensor(storage(), 0, (3, 2), (1, 3)),
            "diagonal": tensor(storage(), 1, (2,), (4,)),
            "scalar": tensor(storage(), 5, (), ()),
            "odd strides": tensor(storage(), 3, (1, 3), (10**30, 1)),
            "empty": tensor(storage(), 6, (0, 4), (4, 1)),
            "repeated": tensor(storage(), 2, (3,), (0,)),
            "counter": tensor(storage("n", "LongStorage", 1), 0, (), ()),
        }
    )
    found = read(write(root, {"0": SIX, "n": np.array([7], "<i8")}))
    assert list(found) == [
        "rows", "columns", "diagonal", "scalar", "odd strides", "empty", "repeated", "counter",
    ]  # fmt: skip
    assert found["rows"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["columns"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["diagonal"].tolist() == [1, 5]
    assert found["scalar"].tolist() == 5
    assert found["odd strides"].tolist() == [[3, 4, 5]]
    assert found["empty"].shape == (0, 4)
    assert found["repeated"].tolist() == [2, 2, 2]
    assert found["counter"].tolist() == 7 and found["counter"].dtype == np.int64
    assert found["rows"].dtype == np.float32 and not found["rows"].flags.writeable


@FORMATS
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("DoubleStorage", "<f8"), ("HalfStorage", "<f2"), ("BFloat16Storage", ml_dtypes.bfloat16),
        ("LongStorage", "<i8"), ("IntStorage", "<i4"), ("ShortStorage", "<i2"),
        ("CharStorage", "i1"), ("ByteStorage", "u1"), ("BoolStorage", "?"),
    ],
)  # fmt: skip
def test_every_plain_storage(read, write, kind, dtype):
    values = np.array([0, 1, 1], dtype)
    root = mapping({"t": tensor(storage("0", kind, 3), 1, (2,), (1,))})
    found = read(write(root, {"0": values}))["t"]
    assert found.dtype == np.dtype(dtype)
    assert found.astype(int).tolist() == [1, 1]


@FORMATS
def test_metadata_parameters_and_wrappers(read, write):
    metadata = b"}" + ops("_metadata") + ORDERED_DICT + b"sb"  # what state_dict() carries
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor(storage()) + ops(True)
    inner = mapping({"w": parameter + ORDERED_DICT + b"tR"}) + metadata
    assert read(write(inner, {"0": SIX}))["w"].tolist() == SIX.tolist()
    for name in ("state_dict", "model_state_dict", "model"):
        wrapped = mapping({"epoch": ops(3), name: inner})
        assert list(read(write(wrapped, {"0": SIX}))) == ["w"]
    with pytest.raises(CheckpointError, match=r"several state dicts, \['state_dict', 'model'\]"):
        read(write(mapping({"model": inner, "state_dict": inner}), {"0": SIX}))
    with pytest.raises(CheckpointError, match="'epoch' is a int, not a tensor"):
        read(write(mapping({"w": tensor(storage()), "epoch": ops(3)}), {"0": SIX}))
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        read(write(ops([1]), {}))


@FORMATS
def test_what_pytorch_wrote_before_version_0_4(read, write):
    rebuilt = b"ctorch._utils\n_rebuild_tensor\n(" + storage() + ops(1) + ops((2,)) + ops((3,))
    rebuilt += b"tR"
    parameter = PARAMETER + b"(" + rebuilt + b"t\x81(" + ops(True) + ops(False) + b"}tb"
    found = read(write(mapping({"tensor": rebuilt, "parameter": parameter}), {"0": SIX}))
    assert found["tensor"].tolist() == found["parameter"].tolist() == [1, 4]
    twice = PARAMETER + b"(" + parameter + b"t\x81"
    with pytest.raises(CheckpointError, match=r"'w' is a Parameter, not a tensor"):
        read(write(mapping({"w": twice}), {"0": SIX}))


def test_pickled_attributes_do_not_replace_methods(read):
    swap = b"}" + ops("items") + b"ccollections\nOrderedDict\nsb"
    root = mapping({"w": tensor(storage())}) + swap
    assert list(read(legacy(root, {"0": SIX}))) == ["w"]


def hostile(marker) -> dict[str, bytes]:
    command = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": b"cos\nsystem\n(" + ops(command) + b"tR",
        "posix.system": b"cposix\nsystem\n(" + ops(command) + b"tR",
        "subprocess.call": b"csubprocess\ncall\n(" + ops(["touch", str(marker)]) + b"tR",
        "builtins.eval": b"cbuiltins\neval\n(" + ops(python) + b"tR",
        "__builtin__.eval": b"c__builtin__\neval\n(" + ops(python) + b"tR",
        "builtins.getattr": b"cbuiltins\ngetattr\n(cos\nsystem\n" + ops("__call__") + b"tR",
        "os.open": b"(" + ops(str(marker)) + ops(os.O_CREAT) + b"ios\nopen\n",  # INST
        "os.mkdir": b"\x80\x04" + ops("os") + ops("mkdir") + b"\x93(" + ops(str(marker)) + b"tR",
        "torch.nn.modules.linear.Linear": b"ctorch.nn.modules.linear\nLinear\n)\x81",
        "torch.load": b"ctorch\nload\n(" + ops(str(marker)) + b"tR",
        "collections.OrderedDict.__class__": b"\x80\x04" + ops("collections")
        + ops("OrderedDict.__class__") + b"\x93)R",
    }  # fmt: skip


@FORMATS
@pytest.mark.parametrize("name", hostile(""))
def test_other_globals_are_refused_and_not_executed(read, tmp_path, write, name):
    marker = tmp_path / "executed"
    payload = hostile(marker)[name]
    expected = rf"weights.pth.*names {re.escape(name)}, .*nothing was executed.*state_dict\(\)"
    for root in (payload, mapping({"w": payload}), tensor(payload), tensor(storage(tail=payload))):
        with pytest.raises(CheckpointError, match=expected):
            read(write(root, {"0": SIX}))
    assert not marker.exists()


def test_hostile_first_pickle_is_not_executed(read, tmp_path):
    marker = tmp_path / "executed"
    payload = b"\x80\x02" + hostile(marker)["os.system"] + b"."
    with pytest.raises(CheckpointError, match=r"not one that torch[.]save wrote"):
        read(payload)
    with pytest.raises(CheckpointError, match=r"os.system, .*nothing was executed"):
        read(pickle.dumps(MAGIC, protocol=2) + payload)
    assert not marker.exists()


def test_state_set_on_what_the_pickle_may_name_does_not_last(read):
    poison = b"(" + ops({"storage": 1}) + ops({"__defaults__": (1,), "__name__": "x"}) + b"tb"
    named = (REBUILD, PARAMETER, b"ccollections\nOrderedDict\n")
    for target in (*named, storage(), tensor(storage())):
        with pytest.raises(CheckpointError):
            read(legacy(target + poison, {"0": SIX}))
        good = legacy(mapping({"w": tensor(storage())}), {"0": SIX})
        assert read(good)["w"].tolist() == SIX.tolist()


OUTSIDE, MALFORMED = "reaches outside its storage of 6 elements", "malformed offset, size or stride"


@FORMATS
@pytest.mark.parametrize(
    ("description", "message"),
    [
        ((1, (6,), (1,)), OUTSIDE),
        ((0, (7,), (1,)), OUTSIDE),
        ((0, (2, 3), (4, 1)), OUTSIDE),
        ((6, (), ()), OUTSIDE),
        ((7, (0,), (1,)), OUTSIDE),
        ((2**64, (1,), (1,)), OUTSIDE),
        ((0, (2,), (2**63,)), OUTSIDE),
        ((0, (2**40,), (0,)), OUTSIDE),  # would swell one number to terabytes
        ((0, (2**32, 2**32), (0, 0)), OUTSIDE),
        ((-1, (2,), (1,)), MALFORMED),
        ((5, (3,), (-1,)), MALFORMED),
        ((0, (-6,), (1,)), MALFORMED),
        ((0, (2, 3), (1,)), MALFORMED),
        ((0, [6], (1,)), MALFORMED),
        ((0, (6.0,), (1,)), MALFORMED),
        ((True, (2,), (1,)), MALFORMED),
        (("0", (2,), (1,)), MALFORMED),
        ((None, None, None), MALFORMED),
        ((0, (1,) * 70, (1,) * 70), "damaged"),
    ],
)
def test_hostile_tensor_arguments(read, write, description, message):
    with pytest.raises(CheckpointError, match=message):
        read(write(mapping({"w": tensor(storage(), *description)}), {"0": SIX}))


@FORMATS
@pytest.mark.parametrize(
    "reference",
    [
        ops("storage") + b"Q",
        ops(("storage", "FloatStorage", "0")) + b"Q",
        ops(("module", "FloatStorage", "0", "cpu", 6)) + b"Q",
        ops(("storage", "os.system", "0", "cpu", 6)) + b"Q",
        ops(("storage", [], "0", "cpu", 6)) + b"Q",
        storage(key=0),
        storage(count=-1),
        storage(count="6"),
        storage(tail=ops(("0", 1, 2))),
        b"Pstorage\n",
    ],
)
def test_hostile_storage_references(read, write, reference):
    with pytest.raises(CheckpointError, match=r"its pickle refers to .*, not to a plain storage"):
        read(write(mapping({"w": tensor(reference)}), {"0": SIX}))


@FORMATS
def test_storages_that_contradict(read, write):
    two = mapping({"a": tensor(storage()), "b": tensor(storage(count=5), 0, (5,))})
    with pytest.raises(CheckpointError, match="describes storage '0' in two ways"):
        read(write(two, {"0": SIX}))
    with pytest.raises(CheckpointError, match="tensor 'w' has no storage in the file"):
        read(write(mapping({"w": tensor(ops("text"))}), {}))


def test_legacy_sizes_that_the_file_does_not_hold(read):
    root = mapping({"w": tensor(storage(count=2**50))})
    end = struct.pack("<q", 2**50) + SIX.tobytes()
    with pytest.raises(CheckpointError, match=f"cut short: {2**52} bytes should follow, 24 do"):
        read(legacy(root, {"0": SIX})[: -8 - 24] + end)
    with pytest.raises(CheckpointError, match="storage '0' has 6 elements, not 5"):
        read(legacy(mapping({"w": tensor(storage(count=5), 0, (5,))}), {"0": SIX}))
    with pytest.raises(CheckpointError, match="lists a storage 'x' that no tensor uses"):
        read(legacy(mapping({}), {"x": SIX}))
    with pytest.raises(CheckpointError, match="tensor 'w' has no storage in the file"):
        read(legacy(mapping({"w": tensor(storage())}), {}))


def test_zip_sizes_that_the_file_does_not_hold(read):
    with pytest.raises(CheckpointError, match=f"tensors need {2**52} bytes, more than it has"):
        read(zipped(mapping({"w": tensor(storage(count=2**50))}), {"0": SIX}))
    with pytest.raises(CheckpointError, match="'net/data/0' has 24 bytes, not 20"):
        read(zipped(mapping({"w": tensor(storage(count=5), 0, (5,))}), {"0": SIX}))
    with pytest.raises(CheckpointError, match="incomplete: 'net/data/0' is not in the archive"):
        read(zipped(mapping({"w": tensor(storage())}), {}))
    with pytest.raises(CheckpointError, match=r"compressed, which torch[.]save never does"):
        read(zipped(mapping({}), {}, compression=zipfile.ZIP_DEFLATED))


def test_byte_order(read):
    root, big = mapping({"w": tensor(storage())}), SYSTEM | {"little_endian": False}
    with pytest.raises(CheckpointError, match="not written on a little-endian machine"):
        read(legacy(root, {"0": SIX}, system=big))
    with pytest.raises(CheckpointError, match="byte order is b'big', not little-endian"):
        read(zipped(root, {"0": SIX}, order=b"big"))
    assert read(zipped(root, {"0": SIX}, order=None))["w"].tolist() == SIX.tolist()


@FORMATS
def test_every_truncation_is_refused(read, write):
    data = write(mapping({"w": tensor(storage())}), {"0": SIX})
    for length in range(len(data)):
        with pytest.raises(CheckpointError, match=r"weights.pth.*Expected a state dict"):
            read(data[:length])


@FORMATS
def test_flipped_bytes_are_read_or_refused(read, write):
    data = bytearray(write(mapping({"w": tensor(storage())}), {"0": SIX}))
    for position in range(len(data)):
        data[position] ^= 0x41
        try:
            for values in read(bytes(data)).values():
                values.tolist()
        except CheckpointError:
            pass
        data[position] ^= 0x41


def archive(*names) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zip_file:
        for name in names:
            zip_file.writestr(name, b"")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"404: Not Found", "a text file that begins '404: Not Found'"),
        (b"\n<!DOCTYPE html><html>", "an HTML or XML page, often what a failed download leaves"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer: .*git lfs pull"),
        (b"\x89HDF\r\n\x1a\n\0\0", r"an HDF5 file: .*model.load_weights\(path\)"),
        (pickle.dumps({"w": [1.0]}), "a pickle, but not one that torch.save wrote"),
        (b"\x93NUMPY\x01\x00", "a NumPy .npy file"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\xff\xfe\x00\x01", "which is no known format"),
        (archive("config.json", "model.weights.h5"), r"zip archive of \['config.json', .*NAME/dat"),
        (archive("a/data.pkl", "b/data.pkl"), "without one NAME/data.pkl"),
        (archive("net/data.pkl", "net/constants.pkl"), "a TorchScript program"),
    ],
)
def test_other_files_are_named(read, data, found):
    with pytest.raises(CheckpointError, match=rf"weights.pth.*{found}.*Expected a state dict"):
        read(data)


def test_missing_path_and_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere.pth.*Expected a state dict"):
        read_torch_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="is a directory"):
        read_torch_checkpoint(tmp_path)
