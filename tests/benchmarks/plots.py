"""Plots of what was measured, as PNG files beside this module; README shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from tests.benchmarks.figures import console, machine

FOLDER = Path(__file__).parent / "plots"
_OURS = "#2b6cb0"
_OTHERS = ["#a0aec0", "#cbd5e0", "#718096", "#e2a36f", "#d6bcfa"]


def bars(
    name: str,
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    logarithmic: bool = False,
    unit: str = "",
) -> None:
    """Groups of bars, a group a label, a bar a series; written to `plots/<name>.png`. The first series is ours."""
    figure, axes = plt.subplots(figsize=(max(6.0, 1.15 * len(labels)), 4.2), dpi=110)
    width = 0.8 / len(series)
    for index, (what, values) in enumerate(series.items()):
        colour = _OURS if index == 0 else _OTHERS[(index - 1) % len(_OTHERS)]
        places = [place - 0.4 + width * (index + 0.5) for place in range(len(labels))]
        axes.bar(places, values, width, label=what, color=colour)
    if logarithmic:
        axes.set_yscale("log")
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=8, frameon=False, ncols=len(series))
    figure.text(0.99, 0.005, machine().rpartition(", ")[0], ha="right", fontsize=6, color="#718096")
    figure.tight_layout()
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png")
    plt.close(figure)
    console.print(f"plots/{name}.png", style="dim")
