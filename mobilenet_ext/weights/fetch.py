"""Downloads one file: resumes what was interrupted, compares checksums, shows progress.

What has come so far is kept as NAME.part, and what identifies it on the server as NAME.part.json;
only when the server confirms that the file is still the same does the rest come after it.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import pathlib
import re
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from tqdm import tqdm

from .errors import WeightsError

TRIES = 4
PAUSE = 1.0  # seconds before the second try, doubled for each further one
TIMEOUT = 30.0
BLOCK = 2**18
MAX_BYTES = 2**30  # more than any MobileNetV1 has


class NotThere(Exception):
    """The server has no such file."""


class _Interrupted(Exception):
    """The connection broke; what has come is kept."""


class _Headers(urllib.request.HTTPRedirectHandler):
    """Follows redirects and remembers the checksum that the first server sends with one."""

    linked: str | None = None

    def redirect_request(self, request: Any, file: Any, *answer: Any) -> Any:
        code, message, headers, url = answer
        self.linked = self.linked or headers.get("X-Linked-ETag")
        if request.full_url.startswith("https:") and not url.startswith("https:"):
            raise WeightsError(f"{request.full_url}: redirected to {url}, which is not encrypted")
        return super().redirect_request(request, file, code, message, headers, url)


def fetch(
    url: str, path: pathlib.Path, *, sha256: str | None = None, progress: bool | None = None
) -> str:
    """Download a file; it appears at its path whole and checked, or not at all.

    Args:
        url: http or https.
        path: where the file shall be.
        sha256: that it must have, where it is known.
        progress: show a bar; None: on a terminal.

    Returns:
        The file's SHA-256.

    Raises:
        NotThere: the server says that there is no such file.
        WeightsError: it cannot be had, or is not what it should be.
    """
    part = path.with_name(f"{path.name}.part")
    for attempt in range(TRIES):
        try:
            headers = _receive(url, part, progress)
            break
        except _Interrupted as error:
            if attempt == TRIES - 1:
                later = f", and will go on from byte {_size(part):,} when asked for again"
                state = f"interrupted{later}" if _size(part) else "cannot be downloaded"
                raise WeightsError(f"{url}: {state}: {error}") from error
            time.sleep(PAUSE * 2**attempt)
    found = _check(url, part, headers, sha256)
    part.replace(path)
    _validator_of(part).unlink(missing_ok=True)
    return found


def _receive(url: str, part: pathlib.Path, progress: bool | None) -> dict[str, str]:
    """Add to `part` what it lacks; returns the headers, in lower case."""
    start, validator = _size(part), _read_validator(part)
    request = urllib.request.Request(url, headers={"User-Agent": "mobilenet_ext"})  # noqa: S310
    if start and validator:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator)
    redirects = _Headers()
    try:
        with urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if redirects.linked:
                headers["x-linked-etag"] = redirects.linked
            if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
                start = 0
            elif not headers.get("content-range", "").startswith(f"bytes {start}-"):
                _forget(part)
                raise _Interrupted(f"expected bytes from {start}, found other ones")
            _write(url, answer, part, start, headers, progress)
            return headers
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.NOT_FOUND:
            raise NotThere(url) from error
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _forget(part)
            raise _Interrupted("the file has changed on the server") from error
        if error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise _Interrupted(str(error)) from error
        raise WeightsError(f"{url}: cannot be downloaded: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from error


def _write(
    url: str,
    answer: Any,
    part: pathlib.Path,
    start: int,
    headers: dict[str, str],
    progress: bool | None,
) -> None:
    """Append the body from byte `start` on; no more than the server announced."""
    length = headers.get("content-length", "")
    total = start + int(length) if length.isdigit() else None
    if (total or 0) > MAX_BYTES:
        raise WeightsError(f"{url}: expected at most {MAX_BYTES:,} bytes, found {total:,}")
    validator = headers.get("etag") or headers.get("last-modified")
    if not start:
        _forget(part)
        if validator and not validator.startswith("W/"):
            _validator_of(part).write_text(json.dumps(validator), encoding="utf-8")
    shown = sys.stderr.isatty() if progress is None else progress
    name = part.name.removesuffix(".part")
    with (
        part.open("ab") as file,
        tqdm(
            total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=not shown
        ) as bar,
    ):
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
            if file.tell() > MAX_BYTES:
                _forget(part)
                raise WeightsError(f"{url}: expected at most {MAX_BYTES:,} bytes, found more")
    if total is not None and _size(part) != total:
        raise _Interrupted(f"expected {total:,} bytes, found {_size(part):,}")


def _check(url: str, part: pathlib.Path, headers: dict[str, str], sha256: str | None) -> str:
    """Compare checksums, those asked for and those that servers send; returns the SHA-256."""
    found = sha256_of(part)
    linked = headers.get("x-linked-etag", "").strip('"')
    announced = linked if re.fullmatch(r"[0-9a-f]{64}", linked) else None
    pairs = [("SHA-256", sha256, found), ("SHA-256", announced, found)]
    if match := re.search(r"md5=([\w+/]+=*)", headers.get("x-goog-hash", "")):
        md5 = hashlib.md5(part.read_bytes(), usedforsecurity=False).digest()
        pairs.append(("MD5", match[1], base64.b64encode(md5).decode()))
    for kind, expected, actual in pairs:
        if expected is not None and expected != actual:
            _forget(part)
            raise WeightsError(f"{url}: expected {kind} {expected}, found {actual}")
    return found


def sha256_of(path: pathlib.Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _size(part: pathlib.Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _validator_of(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.json")


def _read_validator(part: pathlib.Path) -> str | None:
    try:
        text = json.loads(_validator_of(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return text if isinstance(text, str) else None


def _forget(part: pathlib.Path) -> None:
    part.unlink(missing_ok=True)
    _validator_of(part).unlink(missing_ok=True)
