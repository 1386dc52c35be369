"""Files that are damaged or hostile: a clear error, nothing executed, no memory for nothing."""

import json
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from refusal import little_memory, refuse
from safetensors.torch import save_file

from mobilenet_ext import FusedMobileNet, load_pretrained, save_pretrained


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    with little_memory():
        yield


@pytest.fixture
def model() -> FusedMobileNet:
    return FusedMobileNet(7, 0.25)


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
    ("declared", "other"),
    [
        (b"K\x07M\x00\x01", b"\x8a\x06\0\0\0\0\0\x01M\x00\x01"),  # sizes (7, 256): (2**40, 256)
        (b"M\x00\x07t", b"\x8a\x06\0\0\0\0\0\x01t"),  # 1,792 numbers of storage: 2**40
    ],
)
def test_a_pickle_that_declares_more_than_the_file_has(
    tmp_path: pathlib.Path, model: FusedMobileNet, declared: bytes, other: bytes
) -> None:
    """Either it is refused, or it loads what is there; it never takes what it declares."""
    torch.save(model.state_dict(), tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:
        for name, record in records.items():
            changed = record.replace(declared, other) if name.endswith(".pkl") else record
            assert changed != record or not name.endswith(".pkl")
            archive.writestr(name, changed)
    if declared.startswith(b"K"):
        refuse(tmp_path / "y.pt", "damaged torch file")
    else:
        loaded = load_pretrained(tmp_path / "y.pt")
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict of tensors, found list"),
        ({}, "expected a dict of tensors, found nothing"),
        ({"stem.conv.weight": 3}, "stem.conv.weight: expected a tensor, found int"),
        ({"a": torch.eye(2).to_sparse()}, "a: expected a dense tensor, found torch.sparse_coo"),
        ({"a": torch.zeros(2, device="meta")}, "a: expected a dense tensor, found .* on meta"),
        ({"a": torch.zeros(2)}, "expected the tensors of a MobileNetV1, found a"),
        ({"stem.conv.weight": torch.zeros(2)}, "missing: blocks.12|expected 4 dimensions"),
    ],
)
def test_torch_files_of_something_else(
    tmp_path: pathlib.Path, content: object, message: str
) -> None:
    torch.save(content, tmp_path / "x.pt")
    refuse(tmp_path / "x.pt", message)
