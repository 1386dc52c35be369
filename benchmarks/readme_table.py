#!/usr/bin/env python3
"""Write the README's tables from the JSON files in results/; --check only compares."""

import argparse
import json
import pathlib
import sys
from typing import Any

import tradeoff_report

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- {} table -->", "<!-- end of {} table -->"
OURS = "mobilenet_ext"


def timed(point: dict[str, Any]) -> dict[str, float]:
    """Return the median ms of every contender that was timed."""
    return {
        result["contender"]: result["median_ms"]
        for result in point["results"]
        if result["status"] == "timed"
    }


def row(point: dict[str, Any]) -> str:
    """Return one line: ours and frozen, then the peers, the fastest first, as ratios to ours."""
    ratios = {result["contender"]: result["ratio"] for result in point["results"]}
    peers = {name: ms for name, ms in timed(point).items() if not name.startswith(OURS)}
    cells = [
        f"{name} {ms:.3g} ms ({ratios[name]:.2f}×)"
        for name, ms in sorted(peers.items(), key=lambda item: item[1])
    ]
    frozen = timed(point).get(f"{OURS}.freeze")
    ours = f"{timed(point)[OURS]:.3g} ms" + (f", frozen {frozen:.3g} ms" if frozen else "")
    return f"| {point['label']} | {ours} | {', '.join(cells)} |"


def table(files: list[pathlib.Path]) -> str:
    """Return the Markdown of all results, a table for every file."""
    parts = []
    for file in files:
        content = json.loads(file.read_text(encoding="utf-8"))
        machine = content["machine"]
        isa = machine["mobilenet_ext"]["config"]["instruction set"].split(",")[0]
        if "without_avx512.so" in machine.get("preloaded", []):
            isa += " (AVX-512 hidden from all)"
        lines = [
            f"{machine['cpu']}, {machine['cores']} cores, {isa}, torch "
            f"{machine['packages']['torch']}, {machine['date'][:10]}. Medians; in brackets the "
            "peer's time over ours, so above 1 ours is faster and below 1 it is slower.",
            "",
            "| | mobilenet_ext | peers |",
            "| --- | --- | --- |",
            *(row(point) for point in content["points"] if OURS in timed(point)),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def speed() -> str:
    """Return the tables of `latency.py`."""
    files = sorted((HERE / "results").glob("*.json"))
    return table([file for file in files if not file.name.startswith("gpu-")])  # gpu_markdown.py's


def tradeoff() -> str:
    """Return the tables of `tradeoff.py`."""
    path = HERE / "results/tradeoff/tradeoff.json"
    if not path.is_file():
        return "Not measured yet."
    return tradeoff_report.markdown(json.loads(path.read_text(encoding="utf-8")))


def replaced(text: str, name: str, new: str) -> str:
    """Return the text with `new` between the marks of the table `name`."""
    before, rest = text.split(BEGIN.format(name))
    after = rest.split(END.format(name))[1]
    return f"{before}{BEGIN.format(name)}\n{new}\n{END.format(name)}{after}"


def main() -> int:
    """Rewrite the README, or with --check return 1 if it is not what the results say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = HERE.parent / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = replaced(replaced(text, "benchmark", speed()), "trade-off", tradeoff())
    if check:
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
