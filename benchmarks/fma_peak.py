"""The peak of fused multiply-adds, timed in turn with the contenders (see fma_peak.c).

It is the CPU's, or that of AVX2 where the kernels were told to use no more.
"""

import concurrent.futures
import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile

from mobilenet_ext import _C

STEPS = 5_000_000  # of a call: 7 ms and more, beside which to start its threads costs nothing
FLAGS = ("-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")


class FmaPeak:
    """A run of nothing but multiply-adds on so many threads."""

    def __init__(self, library: ctypes.CDLL, threads: int) -> None:
        self._multiply_add = library.multiply_add
        self._multiply_add.argtypes, self._multiply_add.restype = [ctypes.c_long], ctypes.c_double
        self._threads = threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self.flops = threads * self._multiply_add(1) * STEPS
        """Of a call."""

    def __call__(self) -> None:
        """Run on every thread."""
        if self._threads == 1:
            self._multiply_add(STEPS)
        else:
            list(self._pool.map(self._multiply_add, [STEPS] * self._threads))


def fma_peak(threads: int) -> FmaPeak | None:
    """Return the run, or None on other processors than x86 and without a C compiler."""
    library = _library()
    return FmaPeak(library, threads) if library else None


@functools.cache
def _library() -> ctypes.CDLL | None:
    source = pathlib.Path(__file__).with_suffix(".c")
    compiler = shutil.which("cc")
    if not compiler:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "fma_peak.so"
        less = () if _C.isa() == "avx512" else ("-mno-avx512f",)
        command = [compiler, *FLAGS, *less, "-o", str(library), str(source)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return None
        return ctypes.CDLL(str(library))
