#!/usr/bin/env python3
"""Write GPU_STATUS.md from a report of gpu_report.py: what ran on a GPU, and what came of it.

python benchmarks/gpu_markdown.py            # from the newest results/gpu-*.json
python benchmarks/gpu_markdown.py --check    # 1 when the file says something else
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from targets import (
    Verdict,
    kernel_verdicts,
    layout_of,
    model_verdicts,
    percent_wanted,
    reaches,
)

HERE = pathlib.Path(__file__).resolve().parent
STATUS = "GPU_STATUS.md"
COMMAND = """\
```bash
python -m pip install --no-build-isolation --no-deps . && python benchmarks/gpu_report.py --no-build
```
"""
TITLE = "# GPU status\n"
NO_RUN = f"""{TITLE}
**No run on a GPU has happened yet.** The CUDA kernels compile for sm_80, sm_90 and sm_120 without
warnings and within the budget of `tests/cuda_budget.txt`; that is all that is known of them on
hardware. On a machine with a GPU, this tests and measures them, within ten minutes and without a
network, and rewrites this file:

{COMMAND}"""

MOST_CHARACTERS = 400  # of a cell

Content = dict[str, Any]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [list(header), ["---"] * len(header), *([str(c) for c in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def heading(content: Content, name: str) -> str:
    """Return the title and what was measured on."""
    machine = content["machine"]

    def told(key: str) -> str:
        return str(machine.get(key) or "unknown")

    library = machine.get("mobilenet_ext", {}).get("config", {}).get("CUDA library", "unknown")
    facts = [
        ("commit", told("commit")),
        ("GPU", told("gpu")),
        ("driver", told("driver")),
        ("CUDA of torch", told("cuda")),
        ("torch", told("torch")),
        ("Python", told("python")),
        ("CUDA library", library),
        ("date", told("date")),
    ]
    made = f"Made by `python benchmarks/gpu_report.py` from `{name}`; do not edit.\n"
    return f"{TITLE}\n{made}\n" + table(["", ""], facts)


def stages(content: Content) -> str:
    """Return what came of every stage."""
    rows = [
        (s["name"], s["status"], f"{s['seconds']:.0f} s", in_cell(s["reason"]))
        for s in content["stages"]
    ]
    return "## Stages\n\n" + table(["stage", "result", "took", ""], rows)


def tests(content: Content) -> str:
    """Return the counts of tests, and which failed."""
    found = content["tests"]
    if found is None:
        return "## Tests\n\nNot run.\n"
    names = ("passed", "failed", "errors", "skipped")
    counts = ", ".join(f"{found[name]} {name}" for name in names)
    text = f"## Tests\n\n`pytest -m cuda`: {counts}"
    text += ".\n" if found["complete"] else "; **the run was cut short**.\n"
    lines = [f"- {in_cell(line)}\n" for line in found["failures"]]
    lines += [f"- skipped: {in_cell(line)}\n" for line in found["skip_reasons"]]
    return text + ("\n" if lines else "") + "".join(lines)


def sanitizer(content: Content) -> str:
    """Return the errors that each tool counted."""
    if not content["sanitizer"]:
        return "## compute-sanitizer\n\nNot run.\n"
    rows = []
    for entry in content["sanitizer"]:
        errors = entry.get("errors")
        finished = f"{entry.get('calls', 0)} calls of {entry.get('ops', 0)} ops"
        notes = "; ".join([*entry.get("kinds", []), *filter(None, [entry["reason"]])])
        shown = "not finished" if errors is None else errors
        if errors is not None and entry["status"] != "done":
            shown = f"{errors}, but {entry['status']}"
        rows.append((entry["tool"], shown, finished, in_cell(notes)))
    return "## compute-sanitizer\n\n" + table(["tool", "errors", "watched", ""], rows)


def verdicts(content: Content) -> str:
    """Return all targets beside what was measured."""
    found: list[Verdict] = kernel_verdicts(content["kernels"]) + model_verdicts(content["models"])
    rows = [(v.what, v.target, v.measured, v.word) for v in found]
    return "## Targets\n\n" + table(["what", "target", "measured", "met"], rows)


def kernels(content: Content) -> str:
    """Return time and bandwidth of every op at every layer, a table a dtype and layout."""
    text = (
        "## Kernels\n\nBatch 256, cold L2 cache. GB/s counts the least traffic of "
        "the op; the percentage is of a copy from device to device in the same minute.\n"
    )
    rows = content["kernels"]
    if not rows:
        return text + "\nNot run.\n"
    header = ["op", "layer (size/stride/channels)", "µs", "GB/s", "% of copy", "target", "met"]
    for kind in dict.fromkeys(map(kind_of, rows)):
        mine = [kernel_cells(row) for row in rows if kind_of(row) == kind]
        text += f"\n### {kind}\n\n" + table(header, mine)
    return text


def kind_of(row: Content) -> str:
    """Return the heading under which a row goes."""
    return f"{row['dtype']}, {layout_of(row)}"


def kernel_cells(row: Content) -> list[object]:
    """Return one line of the kernel table."""
    obstacle = row["missing"] or row["disagreement"]
    if obstacle:
        return [row["mode"], row["layer"], in_cell(obstacle), "-", "-", "-", "-"]
    wanted, answer = percent_wanted(row), reaches(row)
    return [
        row["mode"],
        row["layer"],
        f"{1e3 * row['ms']:.1f}",
        f"{row['gb_per_s']:.0f}",
        f"{row['percent_of_copy']:.0f}",
        "-" if wanted is None else f"≥ {wanted}",
        {True: "yes", False: "**no**", None: "-"}[answer],
    ]


def models(content: Content) -> str:
    """Return every contender at every point."""
    text = (
        "## Models\n\nMobileNet 1.0 at 224 pixels. Contenders were verified in float64 before they "
        "were timed, and took turns. The ratio is their time over that of `mobilenet_ext`: above 1 "
        "it is faster than they. Memory is what a step or forward pass allocates at its peak; a "
        "CUDA graph keeps its own, which is not seen.\n"
    )
    if not content["models"]:
        return text + "\nNot run.\n"
    header = ["contender", "ms", "images/s", "ratio", "memory"]
    for point in content["models"]:
        rows = [model_cells(result) for result in in_order(point["results"])]
        text += f"\n### {point['label']}\n\n" + table(header, rows)
    return text


def in_order(results: Sequence[Content]) -> list[Content]:
    """Return the fastest first and those without numbers last."""
    return sorted(results, key=lambda r: (r["median_ms"] is None, r["median_ms"] or 0.0))


def model_cells(result: Content) -> list[object]:
    """Return one line of a model table."""
    if result["median_ms"] is None:
        why = in_cell(f"{result['status']}: {result['reason']}")
        return [result["contender"], why, "-", "-", "-"]
    memory = result.get("memory_mb")
    return [
        result["contender"],
        f"{result['median_ms']:.3f}",
        f"{result['images_per_s']:,.0f}",
        "-" if result["ratio"] is None else f"{result['ratio']:.2f}×",
        "-" if memory is None else f"{memory:,.0f} MB",
    ]


def in_cell(text: str) -> str:
    """Return text that does not break a table, shortened."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= MOST_CHARACTERS else flat[:MOST_CHARACTERS] + " …"


def markdown(content: Content, name: str) -> str:
    """Return the whole of GPU_STATUS.md; `name` is the JSON file that it is made from."""
    parts = [heading(content, name)]
    for section in (verdicts, stages, tests, sanitizer, kernels, models):
        parts.append(section(content))
    return "\n".join(parts)


def write_status(content: Content, path: pathlib.Path, name: str) -> None:
    """Replace GPU_STATUS.md."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(markdown(content, name), encoding="utf-8")
    draft.replace(path)


def from_results(folder: pathlib.Path) -> str:
    """Return what the newest report in a folder makes of GPU_STATUS.md."""
    files = [
        (json.loads(path.read_text(encoding="utf-8")), path.name)
        for path in sorted(folder.glob("gpu-*.json"))
    ]
    if not files:
        return NO_RUN
    content, name = max(files, key=lambda file: str(file[0]["machine"]["date"]))
    return markdown(content, name)


def main() -> int:
    """Write the file or compare it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    status, text = HERE.parent / STATUS, from_results(HERE / "results")
    if parser.parse_args().check:
        return int(not status.exists() or status.read_text(encoding="utf-8") != text)
    status.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
