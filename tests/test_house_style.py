"""What a machine can check of the house style in CONTRIBUTING.md."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["benchmarks", "build_backend", "csrc", "mobilenet_ext", "tests"]
CPP = {".cpp", ".cu", ".cuh", ".h"}
CODE = {*CPP, ".py", ".pyi"}

FunctionsOf = Callable[[Path], Iterator[tuple[str, int, int]]]

MAX_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_COLUMNS = 100
MAX_OPENING_LINES = 10
MAX_MACROS = 3


def files(suffixes: set[str], *folders: str) -> list[Path]:
    found = [
        path
        for folder in folders or FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes
    ]
    return found if folders else [*found, ROOT / "setup.py"]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def lines_matching(paths: list[Path], pattern: str) -> list[str]:
    """The places whose line matches, for a message that can be clicked on."""
    regex = re.compile(pattern)
    return [
        f"{place(path, number)}: {line.strip()}"
        for path in paths
        for number, line in enumerate(read(path).splitlines(), 1)
        if regex.search(line)
    ]


def python_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, line and length of every function, its docstring not counted."""
    for node in ast.walk(ast.parse(read(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                length -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            yield node.name, node.lineno, length


def cpp_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Signature, line and length of every function outside a class.

    clang-format indents all of a function but its first line and its closing brace.
    """
    start, text = 0, ""
    for number, line in enumerate(read(path).splitlines(), 1):
        if re.match(r"[A-Za-z_]", line):
            start, text = number, line
        elif line == "}":
            yield text, start, number - start + 1


def op_schemas() -> list[str]:
    """Names of all ops, as the one screen of schemas lists them."""
    return re.findall(r'm\.def\(\s*"(\w+)\(', read(ROOT / "csrc/bindings/library.cpp"))


def macros() -> dict[str, str]:
    return {
        match[1]: str(path.relative_to(ROOT))
        for path in files(CPP)
        for match in re.finditer(r"^\s*#\s*define\s+(\w+)", read(path), re.MULTILINE)
    }


def test_kernels_include_no_torch_pybind_or_python_header() -> None:
    banned = r'#\s*include\s*[<"](torch|ATen|c10|caffe2|pybind11|Python\.h|bindings/)'
    assert lines_matching(files(CPP, "csrc/kernels"), banned) == []


def test_files_are_short() -> None:
    lengths = {path.relative_to(ROOT): len(read(path).splitlines()) for path in files(CODE)}
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_lines_are_short() -> None:
    assert lines_matching(files(CODE), f".{{{MAX_COLUMNS + 1}}}") == []


@pytest.mark.parametrize(
    ("suffixes", "functions_of"), [({".py"}, python_functions), (CPP, cpp_functions)]
)
def test_functions_are_short(suffixes: set[str], functions_of: FunctionsOf) -> None:
    found = [
        (place(path, line), name, length)
        for path in files(suffixes)
        for name, line, length in functions_of(path)
    ]
    assert len(found) > 20
    assert [entry for entry in found if entry[2] > MAX_FUNCTION_LINES] == []


def test_files_open_by_saying_what_they_are() -> None:
    openings = {path: opening(path) for path in files(CODE - {".pyi"})}
    assert [place(path, 1) for path, lines in openings.items() if lines == 0] == []
    assert [place(path, 1) for path, n in openings.items() if n > MAX_OPENING_LINES] == []


def opening(path: Path) -> int:
    """Lines of the comment or docstring at the top, 0 when there is none."""
    if path.suffix == ".py":
        docstring = ast.get_docstring(ast.parse(read(path)))
        return len(docstring.splitlines()) if docstring else 0
    return len(re.findall(r"\A(?://.*\n)*", read(path))[0].splitlines())


def test_no_loose_ends() -> None:
    others = [path for path in files(CODE) if path != Path(__file__)]
    assert lines_matching(others, r"\b(TODO|FIXME|XXX|HACK)\b") == []
    assert [path for path in files(CODE) if "utils" in path.name] == []


def test_no_commented_out_code_in_cpp() -> None:
    """In Python, ruff looks for it."""
    assert lines_matching(files(CPP), r"^\s*//.*[;{}]\s*$") == []


def test_few_macros() -> None:
    assert len(macros()) <= MAX_MACROS, macros()


def test_no_fast_math_no_language_standard_and_no_atomic_sums() -> None:
    """The standard is torch's choice; NaN must survive; results must not depend on the order."""
    build = [*files({".py"}, "build_backend"), ROOT / "setup.py", ROOT / "CMakeLists.txt"]
    assert lines_matching(build, r"-ffast-math|-std=|use_fast_math") == []
    assert lines_matching(files(CPP, "csrc"), r"\batomicAdd\b|\bfetch_add\b") == []


def test_all_schemas_are_in_one_file() -> None:
    others = [path for path in files(CPP, "csrc/bindings") if path.name != "library.cpp"]
    assert len(op_schemas()) >= 6
    assert lines_matching(others, r"\bSTABLE_TORCH_LIBRARY(_FRAGMENT)?\(") == []


@pytest.mark.parametrize("op", op_schemas())
def test_every_op_is_complete(op: str) -> None:
    """A CPU kernel, a fake, a reference and a test for every schema."""
    assert f'm.impl("{op}"' in read(ROOT / "csrc/bindings/library.cpp")
    assert f'register_fake("mobilenet_ext::{op}")' in read(ROOT / "mobilenet_ext/fake.py")
    references = files({".py"}, "mobilenet_ext/reference_ops")
    assert any(f"def {op}(" in read(path) for path in references)
    tests = [*files({".py"}, "tests"), *files(CPP, "tests")]
    assert lines_matching(tests, rf"\b{op}\b") != []


def test_public_modules_say_what_is_public() -> None:
    """Those that the package's own `__all__` names, or takes names from."""
    package = ast.parse(read(ROOT / "mobilenet_ext/__init__.py"))
    exported = all_of(package)
    public = {
        node.module or alias.name
        for node in ast.walk(package)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
        if alias.name in exported
    }
    folder = ROOT / "mobilenet_ext"
    modules = [
        folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
        for name in sorted(public)
    ]
    assert len(modules) >= 3
    assert [path.name for path in modules if not all_of(ast.parse(read(path)))] == []


def all_of(module: ast.Module) -> list[str]:
    """The names in `__all__`, none when there is no such list."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def test_one_version_number() -> None:
    version = re.findall(r'^version = "(.+)"$', read(ROOT / "pyproject.toml"), re.MULTILINE)
    assert len(version) == 1
    others = [*files(CODE), ROOT / "CMakeLists.txt"]
    assert lines_matching(others, re.escape(version[0])) == []
    assert f"## [{version[0]}]" in read(ROOT / "CHANGELOG.md")
