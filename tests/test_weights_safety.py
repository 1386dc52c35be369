"""Files that are damaged or hostile: a clear error, nothing executed, no memory for what they say.

Each test of memory has a file that declares far more than the machine could hold; that it is
refused at once, with the declared shape in the message, is the proof that nothing was allocated.
"""

import json
import pathlib
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mobilenet_ext import FusedMobileNet, WeightsError, load_pretrained, save_pretrained

h5py = pytest.importorskip("h5py")

LIMIT = 2**30  # of address space, beyond what the process has


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """An allocation of the declared size would fail, however lazily the kernel hands out pages."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    fields = pathlib.Path("/proc/self/statm").read_text().split()
    now = int(fields[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def model() -> FusedMobileNet:
    return FusedMobileNet(7, 0.25)


def refuse(path: pathlib.Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(path)
    assert str(path) in str(caught.value)


# What a file is


@pytest.mark.parametrize("content", [b"", b"hello, this is no weights file", b"\x00" * 64])
def test_unknown_content(tmp_path: pathlib.Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    refuse(tmp_path / "x.h5", "expected safetensors, HDF5 .* found")


def test_missing_file(tmp_path: pathlib.Path) -> None:
    refuse(tmp_path / "x.h5", "cannot be read: No such file")


# safetensors


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.999])
def test_truncated_safetensors(tmp_path: pathlib.Path, model: FusedMobileNet, keep: float) -> None:
    content = save_pretrained(model, tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[: int(keep * len(content))])
    refuse(tmp_path / "x", "damaged safetensors")


def safetensors_header(path: pathlib.Path, header: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_safetensors_that_declare_what_they_do_not_have(tmp_path: pathlib.Path) -> None:
    huge = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    safetensors_header(tmp_path / "x", {"stem.conv.weight": huge})
    refuse(tmp_path / "x", "damaged safetensors")
    (tmp_path / "x").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    refuse(tmp_path / "x", "damaged safetensors")


def test_other_networks_and_types(tmp_path: pathlib.Path, model: FusedMobileNet) -> None:
    save_file({"fc.weight": torch.zeros(3)}, tmp_path / "x")
    refuse(tmp_path / "x", r"expected the tensors of a MobileNetV1, found fc.weight")
    state = model.state_dict()
    state["stem.conv.weight"] = state["stem.conv.weight"].to(torch.int8)
    save_file(state, tmp_path / "y")
    refuse(tmp_path / "y", r"stem.conv.weight: expected a floating point type, found I8")


# torch


class Boom:
    """Writes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return pathlib.Path.touch, (self.path,)


def test_objects_are_not_unpickled(tmp_path: pathlib.Path, model: FusedMobileNet) -> None:
    proof = tmp_path / "executed"
    torch.save({**model.state_dict(), "extra": Boom(proof)}, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "holds objects other than tensors")
    torch.save(model, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", "holds objects other than tensors")
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Boom(proof)))
    refuse(tmp_path / "x.pt", "found a bare pickle")
    torch.save(model.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    refuse(tmp_path / "x.pt", "found a bare pickle")
    assert not proof.exists()


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.999])
def test_truncated_torch(tmp_path: pathlib.Path, model: FusedMobileNet, keep: float) -> None:
    torch.save(model.state_dict(), tmp_path / "x.pt")
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: int(keep * len(content))])
    refuse(tmp_path / "x.pt", "damaged torch file")


def test_packed_torch(tmp_path: pathlib.Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 1_000_000)
    refuse(tmp_path / "x.pt", "expected uncompressed records, found x/data.pkl packed")


def test_a_huge_view_of_little_is_not_copied(tmp_path: pathlib.Path, model: FusedMobileNet) -> None:
    state = model.state_dict()
    state["classifier.weight"] = torch.zeros(1, 1).expand(2**20, 2**20)
    torch.save(state, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", rf"classifier.bias: expected \[{2**20}\], found \[7\]")
    state["classifier.bias"] = torch.zeros(1).expand(2**20)
    torch.save(state, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", rf"classifier.weight: expected \[{2**20}, 256\], found")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict of tensors, found list"),
        ({}, "expected a dict of tensors, found nothing"),
        ({"stem.conv.weight": 3}, "stem.conv.weight: expected a tensor, found int"),
        ({"a": torch.eye(2).to_sparse()}, "a: expected a dense tensor, found torch.sparse_coo"),
        ({"a": torch.zeros(2)}, "expected the tensors of a MobileNetV1, found a"),
        ({"stem.conv.weight": torch.zeros(2)}, "missing: blocks.12|expected 4 dimensions"),
    ],
)
def test_torch_files_of_something_else(
    tmp_path: pathlib.Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", message)


# HDF5


def layers() -> list[tuple[str, dict[str, tuple[int, ...]]]]:
    """Name and weights of the layers of Keras's network of alpha 0.25 with 10 classes."""
    widths = [8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256]

    def norm(name: str, channels: int) -> tuple[str, dict[str, tuple[int, ...]]]:
        fields = ("gamma", "beta", "moving_mean", "moving_variance")
        return name, dict.fromkeys((f"{name}/{field}:0" for field in fields), (channels,))

    found = [("conv1", {"conv1/kernel:0": (3, 3, 3, 8)}), norm("conv1_bn", 8)]
    for n, (inputs, outputs) in enumerate(pairwise(widths), 1):
        dw, pw = f"conv_dw_{n}", f"conv_pw_{n}"
        found += [(dw, {f"{dw}/depthwise_kernel:0": (3, 3, inputs, 1)}), norm(f"{dw}_bn", inputs)]
        found += [(pw, {f"{pw}/kernel:0": (1, 1, inputs, outputs)}), norm(f"{pw}_bn", outputs)]
    head = {"conv_preds/kernel:0": (1, 1, 256, 10), "conv_preds/bias:0": (10,)}
    return [*found, ("conv_preds", head)]


def write(path: pathlib.Path, change: Callable[[Any], None] = lambda file: None) -> pathlib.Path:
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name, _ in layers()]
        for name, weights in layers():
            group = file.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in weights]
            for weight, shape in weights.items():
                group.create_dataset(weight, data=torch.rand(shape).numpy())
        change(file)
    return path


CONV1 = "conv1/conv1/kernel:0"
SHAPE = (3, 3, 3, 8)


def test_the_file_that_the_others_spoil_is_right(tmp_path: pathlib.Path) -> None:
    assert load_pretrained(write(tmp_path / "x.h5")).config["num_classes"] == 10


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.999])
def test_truncated_hdf5(tmp_path: pathlib.Path, keep: float) -> None:
    content = write(tmp_path / "x.h5").read_bytes()
    (tmp_path / "x.h5").write_bytes(content[: int(keep * len(content))])
    refuse(tmp_path / "x.h5", "damaged HDF5 file")


def replace(name: str, **options: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=SHAPE, dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=SHAPE)
    del file[CONV1]
    file.create_virtual_dataset(CONV1, layout)


def link(target: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[CONV1]
        file[CONV1] = target

    return change


def unallocated(shape: tuple[int, ...]) -> Callable[[Any], None]:
    """A contiguous dataset without storage: HDF5 would make up its zeros when it is read."""

    def change(file: Any) -> None:
        del file[CONV1]
        space = h5py.h5s.create_simple(shape)
        h5py.h5d.create(file["conv1/conv1"].id, b"kernel:0", h5py.h5t.IEEE_F32LE, space)

    return change


PACKED = "found chunked, compressed, external or virtual"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace(CONV1, shape=(2**20, 2**20), dtype="f4", chunks=(64, 64)), PACKED),
        (replace(CONV1, shape=SHAPE, dtype="f4", compression="gzip"), PACKED),
        (replace(CONV1, shape=SHAPE, dtype="f4", external="/etc/hostname"), PACKED),
        (virtual, PACKED),
        (link(h5py.ExternalLink("/etc/hostname", "/x")), "found a ExternalLink"),
        (link(h5py.SoftLink("/conv_dw_1")), "found a SoftLink"),
        (unallocated((2**20, 2**20)), r"shape \[1048576, 1048576\] takes 4,398,046,511,104 bytes"),
        (unallocated(SHAPE), r"takes 864 bytes, found 0"),
        (replace(CONV1, data=torch.zeros(SHAPE, dtype=torch.int32).numpy()), "found int32"),
        (replace(CONV1, data="text"), r"conv1/kernel:0: shape \[\] takes 8 bytes, found 16"),
        (replace(CONV1, data=h5py.Empty("f4")), "expected an array, found Dataset"),
        (replace(CONV1, data=torch.zeros(3, 3).numpy()), r"expected \[K, K, in, out\], found"),
        (replace(CONV1, data=torch.zeros(5, 5, 3, 8).numpy()), r"found \[8, 3, 5, 5\]"),
        (replace("conv_preds/conv_preds/bias:0", data=torch.zeros(9).numpy()), r"found \[9\]"),
        (lambda file: file.__delitem__(CONV1), "missing: conv1/kernel:0"),
        (lambda file: file.__delitem__("conv_pw_5"), "missing: conv_pw_5"),
        (lambda file: file.attrs.__delitem__("layer_names"), "expected Keras weights"),
        (lambda file: file.attrs.__setitem__("layer_names", 3), "layer_names: expected up to"),
        (lambda file: file.attrs.__setitem__("layer_names", ["a"] * 2000), "expected up to 1024"),
        (lambda file: file.attrs.__setitem__("layer_names", [b"\xff"]), "damaged HDF5 file"),
        (lambda file: file["conv1"].attrs.__setitem__("weight_names", [b"../x"]), "missing: "),
    ],
)
def test_hostile_hdf5(tmp_path: pathlib.Path, change: Callable[[Any], None], message: str) -> None:
    refuse(write(tmp_path / "x.h5", change), message)


def test_names_that_all_point_to_one_long_text(tmp_path: pathlib.Path) -> None:
    """HDF5's texts of variable length are references, so a small file can stand for much text."""

    def change(file: Any) -> None:
        file.attrs["filler"] = "x" * 60_000
        file["big"] = "x" * 3_000_000  # counted as no dataset's own bytes
        file.attrs["layer_names"] = ["a"] * 1000

    refuse(write(tmp_path / "x.h5", change), "layer_names: expected names, found up to")


def test_a_tree_of_keras_3_is_checked_alike(tmp_path: pathlib.Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("layers/conv2d/vars/0", shape=(9,), chunks=(3,), dtype="f4")
    refuse(tmp_path / "x.h5", PACKED)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["layers/conv2d/vars/0"] = torch.zeros(3, 3, 3, 8).numpy()
    refuse(tmp_path / "x.h5", "27 convolutions, .* found 1, 0 and 0: conv2d")
