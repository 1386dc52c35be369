"""From the trade-off study's numbers to the README's tables and to plots."""

import pathlib
import sys
from typing import Any

FOLDER = "benchmarks/results/tradeoff"  # as the README sees it
# Howard et al. 2017: the width at 224 pixels, and the resolution at alpha 1.
PAPER = {
    (1.0, 224): 70.6,
    (1.0, 192): 69.1,
    (1.0, 160): 67.2,
    (1.0, 128): 64.4,
    (0.75, 224): 68.4,
    (0.5, 224): 63.7,
    (0.25, 224): 50.6,
}


def markdown(content: dict[str, Any]) -> str:
    """Return the tables: CIFAR-10 by alpha, where it was trained, and latency of 16 patterns."""
    machine = content["machine"]
    place = f"{machine['cpu']}, {_threads(content)}, {machine['date'][:10]}"
    lines = []
    if content["cifar10"]:
        lines += [
            f"CIFAR-10, recipe `{content['recipe']}`. Latency of one 32×32 image: {place}.",
            "",
            "| alpha | epochs | last top-1 | best top-1 | multiply-adds | parameters | latency | "
            "training |",
            "| --- |" + " --- |" * 7,
        ]
        lines += [
            f"| {each['alpha']:g} | {each['epochs']} | {100 * each['accuracy']:.2f} % | "
            f"{100 * each['best_accuracy']:.2f} % (epoch {each['best_epoch']}) | "
            f"{each['multiply_adds'] / 1e6:.2f} M | {each['parameters']:,} | "
            f"{each['median_ms']:.3g} ms | {each['minutes']:.0f} min |"
            for each in content["cifar10"]
        ]
        lines += ["", f"![accuracy]({FOLDER}/accuracy.png)", ""]
    lines += [
        f"Latency of one image in ms, ImageNet's 1,000 classes: {place}. In brackets the paper's "
        "top-1.",
        "",
    ]
    lines += [*_grid(content["imagenet"]), "", f"![latency]({FOLDER}/latency.png)"]
    return "\n".join(lines)


def _threads(content: dict[str, Any]) -> str:
    count = content["settings"]["threads"]
    return f"{count} thread{'s' * (count > 1)}"


def _grid(points: list[dict[str, Any]]) -> list[str]:
    times = {(each["alpha"], each["resolution"]): each["median_ms"] for each in points}
    alphas = sorted({alpha for alpha, _ in times}, reverse=True)
    resolutions = sorted({resolution for _, resolution in times}, reverse=True)

    def cell(alpha: float, resolution: int) -> str:
        accuracy = PAPER.get((alpha, resolution))
        told = f" ({accuracy} %)" if accuracy else ""
        return f"{times[alpha, resolution]:.3g}{told}"

    return [
        "| alpha | " + " | ".join(map(str, resolutions)) + " |",
        "| --- |" + " --- |" * len(resolutions),
        *(
            f"| {alpha:g} | " + " | ".join(cell(alpha, size) for size in resolutions) + " |"
            for alpha in alphas
        ),
    ]


def draw(folder: pathlib.Path, content: dict[str, Any]) -> list[pathlib.Path]:
    """Draw what there is to draw; say how to get matplotlib without it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("no plots: pip install matplotlib", file=sys.stderr)
        return []
    drawn = [_draw_latency(folder / "latency.png", content)]
    if content["cifar10"]:
        drawn.append(_draw_accuracy(folder / "accuracy.png", content))
    return drawn


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_accuracy(path: pathlib.Path, content: dict[str, Any]) -> pathlib.Path:
    """Accuracy against multiply-adds, parameters and latency."""
    points = sorted(content["cifar10"], key=lambda each: each["alpha"])
    costs = {
        "multiply_adds": ("multiply-adds, M", 1e-6),
        "parameters": ("parameters, M", 1e-6),
        "median_ms": (f"latency, ms, {_threads(content)}", 1.0),
    }
    figure = _figure(12, 3.8)
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (name, (label, scale)) in zip(axes, costs.items(), strict=True):
        x = [scale * each[name] for each in points]
        y = [100 * each["accuracy"] for each in points]
        axis.plot(x, y, marker="o", color="#c44e52")
        for each, across, up in zip(points, x, y, strict=True):
            axis.annotate(
                f"alpha {each['alpha']:g}", (across, up), (5, -12), textcoords="offset points"
            )
        axis.set_xscale("log")
        axis.set_xticks(x, [f"{value:.3g}" for value in x])
        axis.minorticks_off()
        axis.margins(x=0.15)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("CIFAR-10 top-1, %")
    figure.suptitle(f"recipe {content['recipe']}, {points[0]['epochs']} epochs", fontsize=10)
    figure.savefig(path, dpi=120)
    return path


def _draw_latency(path: pathlib.Path, content: dict[str, Any]) -> pathlib.Path:
    """Latency against multiply-adds, a line an alpha, a point a resolution."""
    from matplotlib.ticker import LogLocator

    figure = _figure(6, 4)
    axis = figure.subplots()
    for alpha in sorted({each["alpha"] for each in content["imagenet"]}):
        points = [each for each in content["imagenet"] if each["alpha"] == alpha]
        points.sort(key=lambda each: each["resolution"])
        x = [each["multiply_adds"] / 1e6 for each in points]
        y = [each["median_ms"] for each in points]
        axis.plot(x, y, marker="o", label=f"alpha {alpha:g}")
        for each, across, up in zip(points, x, y, strict=True):
            axis.annotate(
                each["resolution"], (across, up), (4, -9), textcoords="offset points", fontsize=7
            )
    axis.loglog()
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_xlabel("multiply-adds, M")
    axis.set_ylabel(f"latency of one image, ms, {_threads(content)}")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return path
