"""HDF5 files that are damaged or hostile: nothing outside the file, no plugins, no memory."""

import pathlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from refusal import little_memory, refuse

from mobilenet_ext import load_pretrained

h5py = pytest.importorskip("h5py")


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with little_memory():
        yield


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
