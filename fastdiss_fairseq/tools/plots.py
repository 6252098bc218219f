"""What plots share: lines told apart, an axis of K, files."""

from pathlib import Path
from typing import Optional, Sequence


def pyplot():
    """matplotlib's pyplot without a screen; None, and a remark, where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: pip install matplotlib")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def style(number: int) -> dict:
    """Colour and kind of the line of a number."""
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]}


def steps_axis(axes, steps: Sequence[Optional[int]]) -> None:
    """Label the x axis with the values of K there are, apart from None."""
    shown = sorted({k for k in steps if k})
    axes.set_xticks(shown, [str(k) for k in shown], minor=False)
    axes.set_xticks([], minor=True)


def save(figure, path: Path) -> None:
    """Write PNG and SVG, and let go of the figure."""
    from matplotlib import pyplot

    for kind in ("png", "svg"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=150)
    pyplot.close(figure)
