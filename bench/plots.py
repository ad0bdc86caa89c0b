"""Bars of a JSON report, a PNG for each benchmark: ``python -m bench.plots FILE FOLDER``.

Run in the contestants' environment, which has Matplotlib; Cloche's own does not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

_COLOURS = {"stock": "#9aa5b1", "peer": "#4c78a8", "cloche": "#2f9e6e"}


def main() -> None:
    """Draw every benchmark of the report."""
    report, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for benchmark in report["benchmarks"]:
        bars = [
            bar
            for bar in report["summaries"]
            if bar["benchmark"] == benchmark["name"] and bar["figures"].get(benchmark["main"])
        ]
        if bars:
            path = folder / f"{benchmark['name']}.png"
            _draw(benchmark, bars, _caption(report), path)
            print(path)


def _draw(benchmark: dict[str, Any], bars: list[dict[str, Any]], caption: str, path: Path) -> None:
    settings = list(dict.fromkeys(bar["setting"] for bar in bars))
    most = max(sum(bar["setting"] == setting for bar in bars) for setting in settings)
    size = (5.2 * len(settings) + 1.5, 0.34 * most + 1.9)
    figure, panels = plt.subplots(
        1, len(settings), figsize=size, squeeze=False, layout="constrained"
    )
    for panel, setting in zip(panels[0], settings, strict=True):
        _panel(panel, benchmark, [bar for bar in bars if bar["setting"] == setting])
        if len(settings) > 1:
            panel.set_title(f"results {setting}" if setting != "production" else setting)
    figure.suptitle(f"{benchmark['name']}: {benchmark['help']}", fontsize=11)
    figure.supxlabel(caption, fontsize=7, color="#555555")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Any, benchmark: dict[str, Any], bars: list[dict[str, Any]]) -> None:
    main = benchmark["main"]
    bars = sorted(bars, key=lambda bar: bar["figures"][main], reverse=benchmark["higher_is_better"])
    values = [bar["figures"][main] for bar in bars]
    names = [bar["contestant"] for bar in bars]
    drawn = panel.barh(names, values, color=[_colour(name) for name in names], height=0.7)
    labels = [_label(bar, value) for bar, value in zip(bars, values, strict=True)]
    panel.bar_label(drawn, labels=labels, padding=3, fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel(benchmark["heading"])
    panel.margins(x=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(axis="y", labelsize=8)


def _label(bar: dict[str, Any], value: float) -> str:
    shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return shown if bar["ratio"] is None else f"{shown}  ({bar['ratio']:.3g}×)"


def _colour(name: str) -> str:
    kind = name.split()[0]
    return _COLOURS["cloche" if kind == "cloche" else "stock" if kind == "celery" else "peer"]


def _caption(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return (
        f"{report['at'][:10]} · {machine['cores']} cores · Python {machine['python']} · "
        f"{report['server']} · medians of {report['rounds']} rounds; compare within it only\n"
        "grey: stock Celery · blue: peers · green: Cloche"
    )


if __name__ == "__main__":
    main()
