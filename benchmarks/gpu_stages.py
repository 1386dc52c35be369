"""The stages of gpu_report.py: what each runs, for how long at most, and where its results go."""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gpu_parse import parse_pytest
from layers import DEPTHWISE
from stages import Outcome, Stage, last_lines
from targets import COMPILE, EAGER, layout_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
HERE = ROOT / "benchmarks"
Content = dict[str, Any]

# By importance; each its own process. With minutes of autotuning each, one or two fit into ten.
MODEL_POINTS = (
    ("training", 256, "bfloat16"),
    ("inference", 1, "float16"),
    ("inference", 256, "float16"),
    ("training", 256, "float16"),
    ("inference", 1, "bfloat16"),
    ("inference", 256, "bfloat16"),
    ("training", 256, "float32"),
    ("inference", 256, "float32"),
    ("inference", 1, "float32"),
)


@dataclass(frozen=True)
class Step:
    """A stage and how its results get into the report."""

    stage: Stage
    collect: Callable[[Content, pathlib.Path, pathlib.Path], None]  # report, log, JSON
    group: str  # the name by which --only asks for it

    def finish(
        self, outcome: Outcome, content: Content, log: pathlib.Path, result: pathlib.Path
    ) -> Outcome:
        """Collect what there is, also after a failure; a stage without results has failed."""
        try:
            self.collect(content, log, result)
        except (OSError, ValueError, KeyError) as error:
            if outcome.status == "done":
                end = last_lines(log) if log.exists() else ""
                why = f"no results ({type(error).__name__}): {end}"
                return replace(outcome, status="failed", reason=why)
        return outcome


def python(script: str, *arguments: str) -> list[str]:
    """Return the command for a script of this folder."""
    return [sys.executable, str(HERE / script), *arguments]


def read_json(path: pathlib.Path) -> Any:
    """Return what a stage has written."""
    return json.loads(path.read_text(encoding="utf-8"))


def collect_nothing(content: Content, log: pathlib.Path, result: pathlib.Path) -> None:
    """The log says it all."""


def collect_machine(content: Content, log: pathlib.Path, result: pathlib.Path) -> None:
    """What the numbers are measured on; the commit is known already."""
    told = {name: value for name, value in read_json(result).items() if value}
    content["machine"] |= told | {"commit": content["machine"]["commit"]}


def collect_tests(content: Content, log: pathlib.Path, result: pathlib.Path) -> None:
    """Counts of tests."""
    found = parse_pytest(log.read_text(encoding="utf-8", errors="replace"))
    if not sum(found[name] for name in ("passed", "failed", "skipped", "errors")):
        raise ValueError("no test was run")
    content["tests"] = found


def collect_sanitizer(content: Content, log: pathlib.Path, result: pathlib.Path) -> None:
    """One entry a tool."""
    content["sanitizer"] = read_json(result)


def collect_kernels(content: Content, log: pathlib.Path, result: pathlib.Path) -> None:
    """One row a kernel, layer, dtype and layout; replaces earlier rows of that layout."""
    new = read_json(result)["points"]
    layouts = {layout_of(row) for row in new}
    content["kernels"] = [r for r in content["kernels"] if layout_of(r) not in layouts] + new


def collect_models(content: Content, log: pathlib.Path, result: pathlib.Path) -> None:
    """All contenders at one point; replaces an earlier measurement of that point."""
    new = read_json(result)["points"]
    labels = {point["label"] for point in new}
    content["models"] = [p for p in content["models"] if p["label"] not in labels] + new


def gpu_test_files() -> list[str]:
    """Return the files that may have tests for a GPU.

    Importing the others takes time for nothing, or fails where their libraries are not installed.
    """
    files = sorted((ROOT / "tests").glob("test_*.py"))
    marks = ("on_gpu", "mark.cuda", "implementations")
    return [str(f) for f in files if any(mark in f.read_text(encoding="utf-8") for mark in marks)]


@dataclass(frozen=True)
class Scale:
    """How large everything is; the default is what is reported."""

    device: str = "cuda"
    layers: tuple[str, ...] = tuple(layer.name for layer in DEPTHWISE)
    batch: int = 256
    points: tuple[tuple[str, int, str], ...] = MODEL_POINTS
    alpha: str = "1"
    resolution: str = "224"
    peers: tuple[str, ...] = (EAGER, "eager_graph", "mobilenet_ext.graph", COMPILE)


# For trying the report itself where there is no GPU.
DRY_RUN = Scale(
    "cpu",
    ("7/1/1024",),
    1,
    (("training", 8, "bfloat16"), ("inference", 1, "float32")),
    "0.25",
    "32",
    (EAGER, "eager_graph"),
)


def plan(work: pathlib.Path, *, build: bool, scale: Scale) -> list[Step]:
    """Return all steps in their order; JSON results go to `work`."""
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    pip += ["--force-reinstall", str(ROOT)]
    pytest = [sys.executable, "-m", "pytest", "-v", "-ra", "--tb=short", "-m", "cuda"]
    pytest += ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
    pytest += ["--continue-on-collection-errors", *gpu_test_files()]
    if importlib.util.find_spec("xdist"):  # a crash then ends one test, and they take half the time
        pytest += ["-n", "4"]
    device = ["--device", scale.device]
    kernels = [*device, "--batch", str(scale.batch), "--mode", "ops", "--layers", *scale.layers]
    kernels += ["--rounds", "5", "--min-time", "0.02"]
    nchw = [*kernels, "--layout", "contiguous", "--dtype", "float16", "float32"]
    nchw += ["--mode", "norm-conv-statistics", "conv-backward"]
    kernels += ["--dtype", "bfloat16", "float16", "float32"]
    steps = [
        Step(Stage("build", pip, 170, {"MOBILENET_EXT_CUDA": "1"}), collect_nothing, "build"),
        step("machine", python("machine.py", *device), 40, collect_machine, work),
        Step(Stage("tests", pytest, 110, accepted=(0, 1)), collect_tests, "tests"),
        step("sanitizer", python("gpu_sanitizer.py"), 70, collect_sanitizer, work),
        step("kernels", python("ops.py", *kernels), 120, collect_kernels, work),
        step("kernels-nchw", python("ops.py", *nchw), 25, collect_kernels, work, "kernels"),
    ]
    steps += [model_step(*point, scale, work) for point in scale.points]
    return steps if build else steps[1:]


def step(
    name: str,
    command: list[str],
    limit: float,
    collect: Callable[[Content, pathlib.Path, pathlib.Path], None],
    work: pathlib.Path,
    group: str = "",
) -> Step:
    """Return the step of a script that writes JSON and exits with 1 when something was wrong."""
    command = [*command, "--json", str(result_of(name, work))]
    return Step(Stage(name, command, limit, accepted=(0, 1)), collect, group or name)


def model_step(mode: str, batch: int, dtype: str, scale: Scale, work: pathlib.Path) -> Step:
    """Return the step of one point of latency.py."""
    options = ["--device", scale.device, "--mode", mode, "--batch", str(batch), "--dtype", dtype]
    options += ["--alpha", scale.alpha, "--resolution", scale.resolution, "--peers", *scale.peers]
    options += ["--rounds", "7", "--min-time", "0.6", "--build-limit", "240", "--no-plot"]
    name = f"{mode}-{batch}-{dtype}"
    return step(name, python("latency.py", *options), 290, collect_models, work, "models")


def result_of(name: str, work: pathlib.Path) -> pathlib.Path:
    """Return where the stage of this name leaves its JSON."""
    return work / f"{name}.json"
