"""Downloads from a server on this machine: resumed, checked, cached, refused."""

import base64
import hashlib
import pathlib
from collections.abc import Iterator

import pytest
from file_server import Behaviour, serve

from mobilenet_ext import FusedMobileNet, WeightsError, load_pretrained
from mobilenet_ext.weights import (
    cache_folder,
    catalog,
    download,
    export_pretrained,
    fetch,
    known_weights,
)

CONTENT = bytes(range(256)) * 4000
NAME = "keras/mobilenet_2_5_128"
FILE = "/mobilenet_2_5_128_tf.h5"


@pytest.fixture
def server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behaviour]:
    """Serves in place of all publishers; downloads go to `tmp_path`/cache."""
    monkeypatch.setenv("MOBILENET_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    with serve(Behaviour({FILE: CONTENT})) as behaviour:
        monkeypatch.setattr(catalog, "KERAS_URL", behaviour.url)
        monkeypatch.setattr(catalog, "HUB_URL", behaviour.url + "/{name}")
        yield behaviour


def test_downloads_once(server: Behaviour, tmp_path: pathlib.Path) -> None:
    path = download(NAME)
    assert path == tmp_path / "cache/keras/mobilenet_2_5_128_tf.h5"
    assert path.read_bytes() == CONTENT
    assert download(NAME) == download(NAME, offline=True) == path
    assert server.asked == [(FILE, None)]
    assert not list(path.parent.glob("*.part*"))


@pytest.mark.parametrize("moved", [False, True])
def test_a_broken_connection_is_resumed(server: Behaviour, moved: bool) -> None:
    server.break_after = [100_000, 200_000]
    if moved:
        server.redirect_headers = {"X-Other": "1"}
    assert download(NAME).read_bytes() == CONTENT
    assert server.asked == [(FILE, None), (FILE, "bytes=100000-"), (FILE, "bytes=300000-")]


def test_an_interrupted_download_is_resumed_later(server: Behaviour) -> None:
    server.break_after = [1000] * fetch.TRIES
    with pytest.raises(WeightsError, match=r"interrupted, and will go on from byte 4,000"):
        download(NAME)
    assert download(NAME).read_bytes() == CONTENT
    assert server.asked[-1] == (FILE, "bytes=4000-")


def test_a_server_without_ranges_starts_again(server: Behaviour) -> None:
    server.ranges = False
    server.break_after = [100_000]
    assert download(NAME).read_bytes() == CONTENT
    assert server.asked == [(FILE, None), (FILE, "bytes=100000-")]


def test_a_server_that_does_not_identify_files_starts_again(server: Behaviour) -> None:
    server.etag = False
    server.break_after = [100_000]
    assert download(NAME).read_bytes() == CONTENT
    assert server.asked == [(FILE, None), (FILE, None)]


def test_a_file_that_changes_between_two_parts_starts_again(server: Behaviour) -> None:
    server.break_after = [1000] * fetch.TRIES
    with pytest.raises(WeightsError, match="interrupted"):
        download(NAME)
    server.files[FILE] = CONTENT[::-1]
    assert download(NAME).read_bytes() == CONTENT[::-1]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def md5(content: bytes) -> str:
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return "crc32c=AAAAAA==,md5=" + base64.b64encode(digest).decode()


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("header", ["X-Linked-ETag", "x-goog-hash"])
def test_checksums_that_servers_send(server: Behaviour, header: str, wrong: bool) -> None:
    """The hub sends it with the redirect, Google's storage with the file."""
    content = CONTENT[1:] if wrong else CONTENT
    if header == "X-Linked-ETag":
        server.redirect_headers = {header: f'"{sha256(content)}"'}
    else:
        server.headers = {header: md5(content)}
    if wrong:
        with pytest.raises(WeightsError, match=r"expected (SHA-256|MD5) \S+, found \S+"):
            download(NAME)
        assert not [path for path in cache_folder().rglob("*") if path.suffix in (".h5", ".part")]
    else:
        assert download(NAME).read_bytes() == CONTENT


def test_a_checksum_that_is_asked_for(server: Behaviour, tmp_path: pathlib.Path) -> None:
    place, url = tmp_path / "x", server.url + FILE
    assert fetch.fetch(url, place, sha256=sha256(CONTENT)) == sha256(CONTENT)
    place.unlink()
    with pytest.raises(WeightsError, match=f"expected SHA-256 {'0' * 64}, found {sha256(CONTENT)}"):
        fetch.fetch(url, place, sha256="0" * 64)
    assert not place.exists()


def test_a_file_that_changes_in_the_cache(server: Behaviour) -> None:
    path = download(NAME)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="changed since it was downloaded"):
        download(NAME)


def test_offline(server: Behaviour) -> None:
    with pytest.raises(WeightsError, match=r"not in the cache, and offline; put .*_tf.h5 there"):
        load_pretrained(NAME, offline=True)
    assert server.asked == []
    assert not cache_folder().exists()


def test_files_that_users_put_into_the_cache(server: Behaviour) -> None:
    place = cache_folder() / "keras" / FILE[1:]
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    assert download(NAME).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "cannot be downloaded: .*403"),
        (404, "found neither"),
        (503, "cannot be downloaded.*503"),
    ],
)
def test_servers_that_refuse(server: Behaviour, status: int, message: str) -> None:
    server.status = status
    with pytest.raises(WeightsError, match=message):
        download(NAME)


def test_nothing_listens(server: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "KERAS_URL", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"http://127.0.0.1:9\S+: cannot be .*refused"):
        download(NAME)


def test_more_than_any_network_has(server: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    with pytest.raises(WeightsError, match="expected at most 1,000 bytes, found 1,024,000"):
        download(NAME)


def test_progress(server: Behaviour, capsys: pytest.CaptureFixture[str]) -> None:
    download(NAME, progress=True)
    assert "mobilenet_2_5_128_tf.h5: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("name", "to"),
    [("google/mobilenet_v1_1.0_224", "huggingface"), ("timm/mobilenetv1_100", "timm")],
)
def test_repositories(
    server: Behaviour, tmp_path: pathlib.Path, name: str, to: str, weights: str
) -> None:
    model = FusedMobileNet(5, padding="torch", bn_momentum=0.1, dropout=0.25)
    folder = export_pretrained(model, tmp_path / "published", to)
    full = f"{name}.ra4_e3600_r224_in1k" if to == "timm" else name
    server.files = {f"/{full}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    moved = server.files.pop(f"/{full}/model.safetensors")
    server.files[f"/{full}/{weights}"] = moved  # the content tells the format
    loaded = load_pretrained(name)
    assert loaded.config["padding"] == "torch"
    assert (loaded.classifier.weight == model.classifier.weight).all()
    asked = len(server.asked)
    load_pretrained(name, offline=True)
    assert len(server.asked) == asked


def test_names() -> None:
    assert len(known_weights()) == len(set(known_weights())) == 32 + 2 + 2
    with pytest.raises(WeightsError, match="expected a file or one of keras/mobilenet_1_0_224,"):
        load_pretrained("keras/mobilenet_1_0_225")
    assert catalog.find_published("runs/weights.safetensors") is None
    published = catalog.find_published("keras/mobilenet_7_5_160_no_top")
    assert published is not None
    assert f"{published.base_url}/{published.files[0][0]}" == (
        "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
        "mobilenet_7_5_160_tf_no_top.h5"
    )
    for name in known_weights():
        published = catalog.find_published(name)
        assert published is not None
        assert published.base_url.startswith("https://")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("MOBILENET_EXT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "mobilenet_ext"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == pathlib.Path.home() / ".cache/mobilenet_ext"
