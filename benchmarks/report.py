"""Turn results into a table, a JSON file and a plot."""

import json
import pathlib
import sys
from collections.abc import Sequence

from contenders import OURS, is_ours
from results import PointResult, Result

SCHEMA = 1  # of the JSON file


def table(point: PointResult) -> str:
    """Return the point as text: fastest first, then those without numbers and why."""
    rows: list[tuple[str, ...]] = [("", "median ms", "best ms", "x ours", "img/s", "GFLOP/s")]
    rows += [cells(result) for result in point.timed()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [point.point.label()]
    for row in rows:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(["  " + row[0].ljust(widths[0]), *numbers]).rstrip())
    lines += [
        f"  {result.contender.ljust(widths[0])}  {result.status}: {result.reason}"
        for result in point.results
        if result.median_ms is None
    ]
    share = point.share_of_peak()
    if share is not None:
        peak = f"the CPU's peak of multiply-adds, {point.fma_gflops:.0f} GFLOP/s"
        lines.append(f"  {OURS} at {share:.2f} of {peak}")
    return "\n".join([*lines, "  " + point.verdict()])


def cells(result: Result) -> tuple[str, ...]:
    """Return one row of the table."""

    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    return (
        ("> " if is_ours(result.contender) else "  ") + result.contender,
        number(result.median_ms, 3),
        number(result.best_ms, 3),
        number(result.ratio, 2),
        number(result.images_per_s, 0),
        number(result.gflops, 1),
    )


def write_json(
    path: pathlib.Path,
    points: Sequence[dict[str, object]],
    machine: dict[str, object],
    settings: dict[str, object],
) -> None:
    """Write everything measured so far with what it was measured on; replace the file whole."""
    content = {
        "schema": SCHEMA,
        "machine": machine,
        "settings": settings,
        "points": list(points),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)


def write_plot(
    path: pathlib.Path, points: Sequence[PointResult], machine: dict[str, object]
) -> bool:
    """Draw one panel of bars a point; say how to get matplotlib, and return False, without it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f"no plot: {path} needs matplotlib; pip install matplotlib", file=sys.stderr)
        return False
    drawn = [point for point in points if point.timed()]
    if not drawn:
        print(f"no plot: nothing was timed, {path} not written", file=sys.stderr)
        return False
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    tallest = max(len(point.timed()) for point in drawn)
    figure = Figure(figsize=(5.2 * columns, rows * (0.34 * tallest + 1.2)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, point in zip(axes, drawn, strict=False):
        timed = point.timed()[::-1]
        times = [result.median_ms or 0.0 for result in timed]
        colors = ["#c44e52" if is_ours(result.contender) else "#8c9fb5" for result in timed]
        bars = axis.barh([result.contender for result in timed], times, color=colors)
        notes = [
            f" {result.median_ms:.3g} ms" + (f", {result.ratio:.2f}x" if result.ratio else "")
            for result in timed
        ]
        axis.bar_label(bars, notes, fontsize=8)
        axis.set_xlim(0, max(times) * 1.45)
        axis.set_title(point.point.label(), fontsize=10)
        axis.set_xlabel("ms a batch, less is better", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in list(axes):
        axis.set_visible(False)
    figure.suptitle(f"{machine.get('gpu') or machine['cpu']}, {machine['date']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return True
