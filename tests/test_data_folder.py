"""Folders of images as a source, and CIFAR-10 from an archive."""

import pathlib
import tarfile

import pytest
import torch
from training_data import RECORDS, colourful, write_cifar

from mobilenet_ext.data import Augmentation, DataError, cifar10, download, load_cifar10
from mobilenet_ext.data.folder import FolderSource
from mobilenet_ext.data.open import open_training
from mobilenet_ext.data.sampling import Sampler

PLAIN = Augmentation("unit", shift=0.0, flip=False)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    image_module = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    images, labels = colourful(30, 0)
    for number, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = tmp_path / ("train" if number < 20 else "val") / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        image = image_module.fromarray(pixels.permute(1, 2, 0).numpy())
        image.resize((50, 40)).save(place / f"{number}.png")
    return tmp_path


def test_folder_is_a_source(folder: pathlib.Path) -> None:
    source = open_training(folder, resolution=32, crop_scale=1.0)
    assert (source.training_count, source.validation_count) == (20, 10)
    assert source.classes == tuple(f"class{number}" for number in range(10))
    (images, labels) = next(source.validation(10, "unit"))
    assert images.shape == (10, 3, 32, 32)
    assert images.min() >= 0
    assert labels.tolist() == list(range(10))
    parts = [next(source.validation(10, "unit", rank, 2))[1].tolist() for rank in (0, 1)]
    assert parts == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_crops_do_not_depend_on_workers_or_the_start(folder: pathlib.Path) -> None:
    def batches(workers: int, start: int) -> list[torch.Tensor]:
        source = FolderSource(folder, 32, crop_scale=0.3, workers=workers)
        sampler = Sampler(seed=1, epoch=2, batch_size=5, start=start)
        return [images for images, _ in source.training(sampler, PLAIN)]

    first = batches(0, 0)
    assert len(first) == 4
    for one, other in zip(first[1:], batches(1, 1), strict=True):
        assert torch.equal(one, other)
    source = FolderSource(folder, 32, crop_scale=0.3)
    other_epoch = next(source.training(Sampler(1, 3, batch_size=20), PLAIN))[0]
    whole = next(source.training(Sampler(1, 2, batch_size=20), PLAIN))[0]
    assert not torch.equal(whole.sum((1, 2, 3)).sort()[0], other_epoch.sum((1, 2, 3)).sort()[0])


def test_what_is_wrong_with_a_folder_is_told(folder: pathlib.Path) -> None:
    (folder / "val/class3").rename(folder / "val/other")
    with pytest.raises(DataError, match="only in one of the halves: class3, other"):
        open_training(folder)
    for place in (folder / "val").iterdir():
        for file in place.iterdir():
            file.unlink()
    with pytest.raises(DataError, match="Found no valid file"):
        open_training(folder)
    (folder / "val").rename(folder / "later")
    with pytest.raises(DataError, match="expected a folder val beside train, got none"):
        open_training(folder)


def test_damaged_image_is_named(folder: pathlib.Path) -> None:
    (folder / "val/class0/20.png").write_bytes(b"no image")
    source = open_training(folder, resolution=32)
    with pytest.raises(DataError, match=r"20\.png: not an image that can be read"):
        next(source.validation(10, "unit"))


def test_archive_is_unpacked_and_only_what_is_wanted(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path / download.FOLDER)
    archive, asked = tmp_path / "made.tar.gz", []
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / download.FOLDER, download.FOLDER)
        tar.add(tmp_path / download.FOLDER / "test_batch.bin", "../outside.bin")

    def fetch(url: str, path: pathlib.Path, *, sha256: str, progress: bool | None) -> None:
        asked.append((url, sha256))
        path.write_bytes(archive.read_bytes())

    monkeypatch.setattr(download, "fetch", fetch)
    monkeypatch.setattr(cifar10, "RECORDS_PER_FILE", RECORDS)
    target = tmp_path / "deep" / "target"
    for _ in range(2):  # the second time everything is there
        folder = download.download_cifar10(target)
    assert asked == [(download.URL, download.SHA256)]
    assert sorted(path.name for path in target.rglob("*") if path.is_file()) == sorted(
        download.FILES
    )
    expected = load_cifar10(tmp_path / download.FOLDER, train=True)[0]
    assert torch.equal(load_cifar10(folder, train=True)[0], expected)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be unpacked"):
        download.download_cifar10(tmp_path / "again")
