"""The folder that downloads go to, and `download`, which fills it.

$MOBILENET_EXT_CACHE, or mobilenet_ext in $XDG_CACHE_HOME, or ~/.cache/mobilenet_ext. Beside each
file is what was recorded when it came: its address and SHA-256, which is compared at each use.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager

from .catalog import Published, find_published
from .errors import WeightsError
from .fetch import NotThere, fetch, sha256_of


def cache_folder() -> pathlib.Path:
    """Return the folder for downloaded weights; it need not exist."""
    if own := os.environ.get("MOBILENET_EXT_CACHE"):
        return pathlib.Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(xdg) if xdg else pathlib.Path("~/.cache").expanduser()) / "mobilenet_ext"


def download(name: str, *, offline: bool = False, progress: bool | None = None) -> pathlib.Path:
    """Return the path of published weights, from the cache or the network.

    An interrupted download goes on where it stopped. Checksums are compared where the publisher
    has them: the hub's SHA-256, and the MD5 that Google's storage sends; Keras itself has none.

    Args:
        name: one of `known_weights()`.
        offline: never use the network.
        progress: show a bar; None: on a terminal.

    Returns:
        A file, or a folder where there is more than one.

    Raises:
        WeightsError: the name is not known, a file cannot be had, or is not what it should be.
    """
    published = find_published(name)
    if published is None:
        raise WeightsError(f"{name}: not the name of published weights")
    folder = cache_folder() / published.folder
    paths = [_have(folder, published, names, offline, progress) for names in published.files]
    return paths[0] if len(paths) == 1 else folder


def _have(
    folder: pathlib.Path,
    published: Published,
    names: tuple[str, ...],
    offline: bool,
    progress: bool | None,
) -> pathlib.Path:
    """Return the first of the files that is in the cache, else the first that is published."""
    for name in names:
        if _is_intact(folder / name):
            return folder / name
    if offline:
        raise WeightsError(
            f"{folder / names[0]}: not in the cache, and offline; put the file from "
            f"{published.base_url}/{names[0]} there, or load it by its path"
        )
    for name in names:
        url = f"{published.base_url}/{name}"
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder / name):
            if _is_intact(folder / name):  # another process was faster
                return folder / name
            try:
                sha256 = fetch(url, folder / name, sha256=published.sha256, progress=progress)
            except NotThere:
                continue
            record = {"url": url, "sha256": sha256}
            _record_of(folder / name).write_text(json.dumps(record) + "\n", encoding="utf-8")
            return folder / name
    raise WeightsError(f"{published.base_url}: expected {' or '.join(names)}, found neither")


def _is_intact(path: pathlib.Path) -> bool:
    """Tell whether a file is in the cache, and as it came; files that users put there count.

    Raises:
        WeightsError: it has changed since.
    """
    if not path.is_file():
        return False
    if not _record_of(path).is_file():
        return True
    try:
        expected = json.loads(_record_of(path).read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{_record_of(path)}: expected a record, delete it: {error}") from error
    found = sha256_of(path)
    if found != expected:
        raise WeightsError(
            f"{path}: changed since it was downloaded, delete it: expected SHA-256 {expected}, "
            f"found {found}"
        )
    return True


def _record_of(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.download.json")


@contextmanager
def lock(path: pathlib.Path) -> Iterator[None]:
    """Let one process at a time download a file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
