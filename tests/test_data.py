"""The CIFAR-10 reader, its errors, and the augmentation."""

import pathlib

import pytest
import torch
import torch.nn.functional as F

from mobilenet_ext import data
from mobilenet_ext.data import cifar10
from mobilenet_ext.data.sampling import Sampler, chance

RECORDS = 6


def record(label: int, number: int) -> bytes:
    """A record whose planes count up from `number`, so that every pixel can be told."""
    return bytes([label]) + bytes((number + index) % 256 for index in range(3072))


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    for index, name in enumerate((*cifar10.TRAINING_FILES, *cifar10.VALIDATION_FILES)):
        content = b"".join(record((index + row) % 10, 7 * row + index) for row in range(RECORDS))
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_reads_all_files_in_order(folder: pathlib.Path) -> None:
    images, labels = data.load_cifar10(folder, train=True)
    assert images.shape == (5 * RECORDS, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [(file + row) % 10 for file in range(5) for row in range(RECORDS)]
    # Image 8 is row 2 of the second file; green begins after 1,024 red pixels.
    assert images[8, 0, 0, :3].tolist() == [15, 16, 17]
    assert images[8, 1, 1, 0] == (15 + 1024 + 32) % 256


def test_validation_is_the_test_batch(folder: pathlib.Path) -> None:
    images, labels = data.load_cifar10(folder, train=False)
    assert len(images) == RECORDS
    assert labels[0] == 5


def test_finds_the_nested_folder(folder: pathlib.Path) -> None:
    nested = folder / "cifar-10-batches-bin"
    nested.mkdir()
    for path in folder.glob("*.bin"):
        path.rename(nested / path.name)
    assert len(data.load_cifar10(folder, train=True)[0]) == 5 * RECORDS


def test_missing_directory(tmp_path: pathlib.Path) -> None:
    with pytest.raises(data.DataError, match="nowhere: expected a directory with CIFAR-10"):
        data.load_cifar10(tmp_path / "nowhere", train=True)


def test_missing_files_are_named(folder: pathlib.Path) -> None:
    (folder / "data_batch_2.bin").unlink()
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(data.DataError, match=r"missing data_batch_2\.bin, data_batch_4\.bin"):
        data.load_cifar10(folder, train=True)


@pytest.mark.parametrize("change", [-1, 1, -3073])
def test_wrong_size_is_told(folder: pathlib.Path, change: int) -> None:
    path = folder / "data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"x")
    message = rf"data_batch_3\.bin: expected 18,438 bytes .*, got {18438 + change:,}"
    with pytest.raises(data.DataError, match=message):
        data.load_cifar10(folder, train=True)


def test_real_size_is_the_official_one() -> None:
    assert cifar10.RECORDS_PER_FILE * cifar10.RECORD_BYTES == 30_730_000


def test_wrong_label_is_told(folder: pathlib.Path) -> None:
    path = folder / "test_batch.bin"
    path.write_bytes(record(1, 0) * 4 + record(10, 0) + record(1, 0))
    with pytest.raises(data.DataError, match="record 4: expected a label from 0 to 9, got 10"):
        data.load_cifar10(folder, train=False)


def test_normalize() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(data.normalize(pixels).flatten(), torch.tensor([-1.0, -0.6, 1.0]))


def test_augment_mirrors_half_and_shifts_nobody_at_zero() -> None:
    images = torch.randn(64, 3, 8, 8)
    result = data.augment(images, chance((64, 3), 0), shift=0.0)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(result, images, strict=True)]
    mirrored = [
        torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(result, images, strict=True)
    ]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 16 <= sum(same) <= 48


def test_augment_shifts_are_uniform_within_a_tenth() -> None:
    # A vertical ramp shows the shift of its rows; in the middle no edge is repeated.
    ramp = torch.arange(32.0).view(1, 1, 32, 1).expand(500, 1, 32, 32)
    result = data.augment(ramp, chance((500, 3), 0))
    shifts = result[:, 0, 16, 16] - 16
    assert shifts.abs().max() <= 3.2 + 1e-4
    assert shifts.min() < -3
    assert shifts.max() > 3
    assert abs(shifts.mean()) < 0.3
    assert ((shifts - shifts.round()).abs() > 0.1).any()  # continuous, not whole pixels
    assert result.min() >= 0  # edges are repeated: nothing darker than the darkest row
    assert result.max() <= 31


@pytest.mark.parametrize("shift", [0.03, 0.1, 0.5])
def test_augment_is_grid_sample(shift: float) -> None:
    images, numbers = torch.randn(16, 3, 32, 24), chance((16, 3), 1)
    transform = torch.zeros(16, 2, 3)
    transform[:, 0, 0] = torch.where(numbers[:, 2] < 0.5, -1.0, 1.0)
    transform[:, 1, 1] = 1
    # grid_sample's coordinates run from -1 to 1 over the image, so a fraction counts twice.
    transform[:, :, 2] = ((2 * numbers[:, :2] - 1) * 2 * shift).flip(1)
    grid = F.affine_grid(transform, [16, 3, 32, 24], align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    result = data.augment(images, numbers, shift=shift)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_without_flips_no_image_is_mirrored() -> None:
    images = torch.randn(64, 3, 8, 8)
    assert torch.equal(data.augment(images, chance((64, 3), 0), shift=0.0, flip=False), images)


def test_batches_are_whole_and_cover_the_shuffled_data() -> None:
    batches = [chosen for _, chosen in Sampler(0, 1, batch_size=4).batches(10)]
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(set(torch.cat(batches).tolist())) == 8
    assert torch.cat(batches).tolist() != sorted(torch.cat(batches).tolist())
    other = [chosen for _, chosen in Sampler(0, 2, batch_size=4).batches(10)]
    assert not torch.equal(torch.cat(batches), torch.cat(other))


def test_processes_share_a_batch() -> None:
    (whole,) = Sampler(3, 1, batch_size=6).batches(6)
    parts = [Sampler(3, 1, batch_size=6, rank=rank, world=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([next(part.batches(6))[1] for part in parts]), whole[1])
    numbers = torch.cat([part.chance(0) for part in parts])
    assert torch.equal(numbers, Sampler(3, 1, batch_size=6).chance(0))
    with pytest.raises(ValueError, match="batch size 5 cannot be shared by 2 processes"):
        Sampler(3, 1, batch_size=5, world=2)


def test_source_in_memory() -> None:
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 4, 4)
    source = data.TensorSource((images, torch.arange(10)), (images, torch.arange(10)), "abcdefghij")
    plain = data.Augmentation("unit", shift=0.0, flip=False)
    for batch, labels in source.training(Sampler(0, 1, batch_size=4), plain):
        assert torch.equal(batch[:, 0, 0, 0].mul(255).round().long(), labels)
    parts = [source.validation(2, "unit", rank, 3) for rank in range(3)]
    seen = [torch.cat([labels for _, labels in part]).tolist() for part in parts]
    assert seen == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
