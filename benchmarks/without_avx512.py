"""Copy the runtimes, with breakpoints where they ask which instructions there are.

For without_avx512.c, on processors whose CPUID instruction cannot be made to fault (AMD):

    python benchmarks/without_avx512.py runtimes
    export PYTHONPATH=$PWD/runtimes WITHOUT_AVX512=breakpoints
    LD_PRELOAD=$PWD/without_avx512.so python benchmarks/latency.py --grid

PyTorch is not copied, it has switches of its own: see without_avx512.c.
"""

import argparse
import shutil
import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path

RUNTIMES = ("ai_edge_litert", "onnxruntime", "openvino")
CPUID = b"\x0f\xa2"
BREAKPOINT = b"\xcc\x90"  # int3, nop
LOADED, CODE = 1, 1  # a segment's type, and one of its flags


def main() -> None:
    """Copy, patch, and say how often."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name in RUNTIMES:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            parser.error(f"{name} is not installed: pip install '.[bench]'")
        shutil.copytree(spec.submodule_search_locations[0], folder / name)
        libraries = [x for x in (folder / name).rglob("*.so*") if not x.is_symlink()]
        places = sum(map(patch, libraries))
        if not places:
            parser.error(f"{name}: no CPUID found to replace")
        print(name, places, "places")


def patch(library: Path) -> int:
    """Replace every CPUID instruction; return how many there were."""
    code = bytearray(library.read_bytes())
    addresses = [] if CPUID not in code else find_instructions(library, "cpuid")
    for address in addresses:
        at = offset_in_file(code, address)
        if code[at : at + 2] != CPUID:
            raise ValueError(f"{library}: no CPUID at {address:#x}")
        code[at : at + 2] = BREAKPOINT
    library.write_bytes(code)
    return len(addresses)


def find_instructions(library: Path, name: str) -> list[int]:
    """Return the addresses of all instructions of a name."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = [line for line in process.stdout if line.split()[1:] == [name]]
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return [int(line.split(":")[0], 16) for line in found]


def offset_in_file(elf: bytearray, address: int) -> int:
    """Find where a 64-bit ELF file has the code of an address."""
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    for i in range(count):
        kind, flags, offset, begin, _, length = struct.unpack_from("<IIQQQQ", elf, table + i * size)
        if kind == LOADED and flags & CODE and begin <= address < begin + length:
            return int(address - begin + offset)
    raise ValueError(f"no code at {address:#x}")


if __name__ == "__main__":
    main()
