"""An HTTP server for tests of downloads: serves bytes from memory, and misbehaves as told."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    files: dict[str, bytes]
    break_after: list[int] = field(default_factory=list)  # bytes, for one answer after the other
    ranges: bool = True
    etag: bool = True
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    redirect_headers: dict[str, str] = field(default_factory=dict)  # redirects /x to /moved/x
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range
    url: str = ""


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[Behaviour]:
    """Run the server on a free port until the block ends; `behaviour.url` is its address."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            answer(self, behaviour)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    behaviour.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield behaviour
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    path = request.path.removeprefix("/moved")
    content = behaviour.files.get(path)
    wanted = request.headers.get("Range")
    if content is None or behaviour.status:
        request.send_error(behaviour.status or 404)
        return
    if behaviour.redirect_headers and path == request.path:
        request.send_response(302)
        for name, value in {**behaviour.redirect_headers, "Location": f"/moved{path}"}.items():
            request.send_header(name, value)
        request.end_headers()
        return
    behaviour.asked.append((path, wanted))
    etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
    start = 0
    if wanted and behaviour.ranges and request.headers.get("If-Range") == etag:
        match = re.fullmatch(r"bytes=(\d+)-", wanted)
        assert match is not None
        start = int(match[1])
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
    request.send_header("Content-Length", str(len(content) - start))
    if behaviour.etag:
        request.send_header("ETag", etag)
    for name, value in behaviour.headers.items():
        request.send_header(name, value)
    request.end_headers()
    stop = behaviour.break_after.pop(0) if behaviour.break_after else len(content)
    with suppress(ConnectionError):  # the client may have seen enough
        request.wfile.write(content[start : start + stop])
