"""What tests of bad files share: a limit on memory, and the check of the error.

Bad files declare far more than the limit; that one is refused, with its declared shape in the
message, shows that nothing was allocated for it.
"""

import pathlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mobilenet_ext import WeightsError, load_pretrained

LIMIT = 2**30  # of address space, beyond what the process has


@contextmanager
def little_memory() -> Iterator[None]:
    """An allocation beyond the limit fails, however lazily the kernel hands out pages."""
    if not pathlib.Path("/proc/self/statm").exists():
        pytest.skip("needs Linux")
    before = resource.getrlimit(resource.RLIMIT_AS)
    fields = pathlib.Path("/proc/self/statm").read_text().split()
    now = int(fields[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def refuse(path: pathlib.Path, message: str) -> None:
    with pytest.raises(WeightsError, match=message) as caught:
        load_pretrained(path)
    assert str(path) in str(caught.value)
