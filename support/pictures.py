"""report.png: how good, and on what label; the thresholds; the curves of the folds.

n out-of-fold rows, C labels: y and p (n, C). A label has one colour in all panels, that of its bar;
the most frequent ones are drawn as curves. An axes is a panel.
"""

import os
from pathlib import Path

import numpy as np

import metrics
from data import OutOfFold
from metrics import Summary
from support import fonts
from support.process import warn

# Okabe and Ito's colours, told apart by colour-blind readers (https://jfly.uni-koeln.de/color/)
COLOURS = "#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9 #000000 #999933".split()  # noqa: SIM905
OTHERS = "#999999"  # bars of labels that have no curves
MOST = 8  # labels drawn as curves; all of them have a bar
LEAST = 10  # rows of a dot of the reliability panel: the share of fewer says little
GRID = np.linspace(0.01, 0.99, 99, dtype=np.float32)  # thresholds at which F1 is drawn


def draw_report(
    path: Path, log: list[dict], oof: OutOfFold, summary: Summary, names: list[str], heading: str
) -> None:
    """report.png, or a warning: the scores of a whole training must not be lost to a picture."""
    try:
        draw_figure(path, log, oof, summary, names, heading)
    except OSError:  # a full disk
        raise
    except Exception as e:
        path.unlink(missing_ok=True)
        reason = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        warn(f"{path.name} can't be drawn ({reason}) - see your matplotlibrc; all else is there")


def draw_figure(
    path: Path, log: list[dict], oof: OutOfFold, summary: Summary, names: list[str], heading: str
) -> None:
    """Six panels: F1 by label, F1 over the threshold, precision-recall, reliability, losses,
    macro-F1."""
    if not os.environ.get("MPLBACKEND", "").startswith("module://"):  # a notebook's stays
        os.environ.pop("MPLBACKEND", None)  # it may name one that is unknown here
    from matplotlib import rc_context, rcParams
    from matplotlib.figure import Figure

    names = list(map(short, names))
    heading = heading[-140:]
    families, missing = fonts.fonts_for([*names, heading])
    heading = "".join("?" if letter in missing else letter for letter in heading)
    with rc_context({"font.family": [*rcParams["font.family"], *families]}):
        figure = Figure(figsize=(13, 10.5), dpi=100, layout="constrained")
        figure.suptitle(heading.replace("$", r"\$"), fontsize=14)  # $: it would read mathematics
        drawn = fonts.drawable(names, missing)
        if drawn != names:
            figure.supxlabel(fonts.NOTE, fontsize=10)
        drawn = [name.replace("$", r"\$") for name in drawn]
        panels = figure.subplot_mosaic("AAB;AAC;DEF")
        draw_f1(panels["A"], oof.y, summary, drawn)
        draw_curves(panels["B"], panels["C"], panels["D"], oof, summary.th)
        draw_losses(panels["E"], log)
        draw_macro_f1(panels["F"], log)
        for ax in panels.values():
            ax.grid(alpha=0.25)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(fontsize=8, loc="best")
        figure.savefig(path, format="png", metadata={"Software": None})


def short(name: str) -> str:
    """300 letters would leave no room for axes. Long names often differ at the end alone."""
    name = " ".join(name.split())
    return name if len(name) <= 32 else f"{name[:18]}...{name[-11:]}"


# How good, and on what label


def by_frequency(y: np.ndarray) -> np.ndarray:
    """int (C,): the labels, the most frequent first."""
    return np.argsort(-metrics.known_sums(y)[0], kind="stable")


def draw_f1(ax, y: np.ndarray, summary: Summary, names: list[str]) -> None:
    """A bar for each label, the most frequent on top, its F1 written behind its interval."""
    positives, _ = metrics.known_sums(y)
    order = by_frequency(y)
    f1 = metrics.precision_recall_f1(metrics.confusion(y, summary.pred))[2]
    low, high = np.quantile(summary.draws, [0.025, 0.975], axis=0)
    spread = np.abs(np.stack([f1 - low, high - f1]))
    size = min(10, 400 / len(order))  # of letters; 60 labels still fit
    places = range(len(order))
    colours = [*COLOURS[:MOST], *[OTHERS] * len(order)]
    ax.barh(
        places,
        f1[order],
        xerr=spread[:, order].tolist(),  # matplotlib 3.9 takes an array of one for a number
        height=0.6,
        color=colours[: len(order)],
        alpha=0.7,
        ecolor="black",
        capsize=min(3, 60 / len(order)),
    )
    for i, j in enumerate(order):
        end = max(f1[j], high[j]) + 0.015
        text = ax.text(end, i, f"{f1[j]:.3f}", va="center", fontsize=size)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    labels = [f"{names[j]} ({int(positives[j])})" for j in order]
    ax.set_yticks(places, labels, fontsize=size)
    rows = max(5, len(order))  # one label alone is no bar as high as the panel
    middle = (len(order) - 1) / 2
    macro = metrics.scores(y, summary.pred)["macro_f1"]
    ax.axvline(macro, ls=":", color="black", lw=1.2)
    ax.set(
        title=f"Cross-fitted F1, 95 % interval (positives); dotted: macro-F1, {macro:.3f}",
        xlabel="F1 (a label's colour is that of its curves)",
        xlim=(0, 1.1),
        xticks=np.arange(0, 1.01, 0.2),
        ylim=(middle + rows / 2, middle - rows / 2),  # the first is on top
    )


# Curves of the most frequent labels


def draw_curves(f1, precision_recall, reliable, oof: OutOfFold, th: np.ndarray) -> None:
    """Into three axes, the curves of the most frequent labels. th (C,): the run's thresholds."""
    positives, known = metrics.known_sums(oof.y)
    for j, colour in zip(by_frequency(oof.y), COLOURS[:MOST], strict=False):
        if 0 < positives[j] < known[j]:
            y, p = metrics.known_cells(oof.y[:, j], oof.p[:, j])
            draw_f1_by_threshold(f1, y, p, th[j], colour)
            draw_precision_recall(precision_recall, y, p, th[j], colour)
            draw_reliability(reliable, y, p, colour)
    square = {"xlim": (0, 1.02), "ylim": (0, 1.02)}
    f1.set(title="F1 over the threshold (dot: chosen)", **square)
    f1.set(xlabel="threshold", ylabel="F1")
    precision_recall.set(title="Precision-recall (dot: chosen threshold)", **square)
    precision_recall.set(xlabel="recall", ylabel="precision")
    reliable.plot([0, 1], [0, 1], ":", color="grey")
    reliable.set(title=f"Reliability (a dot: {LEAST} rows or more)", **square)
    reliable.set(xlabel="probability", ylabel="share of positives")


def draw_f1_by_threshold(ax, y, p, th: float, colour: str) -> None:
    """One label's F1 at each threshold, and a dot at its own. y, p (n,)."""
    (f1,) = metrics.f1_by_threshold(y[:, None], p[:, None], GRID)
    ax.plot(GRID, f1, color=colour, lw=1.4)
    counts = metrics.confusion(y, metrics.detect(p, th))
    *_, f1 = metrics.precision_recall_f1(counts)
    ax.plot(th, f1, "o", color=colour, ms=7, mec="white")


def draw_precision_recall(ax, y, p, th: float, colour: str) -> None:
    """One label's curve, and a dot at its threshold. y, p (n,)."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(y, p)
    ax.plot(recall, precision, color=colour, lw=1.4)
    counts = metrics.confusion(y, metrics.detect(p, th))
    precision, recall, _ = metrics.precision_recall_f1(counts)
    ax.plot(recall, precision, "o", color=colour, ms=7, mec="white")


def draw_reliability(ax, y, p, colour: str) -> None:
    mean, share, error = metrics.reliability(y, p, least=LEAST)
    ax.plot(mean, share, "o-", color=colour, lw=1.2, ms=3.5, label=f"ECE {error:.3f}")


# Curves of the folds


def by_fold(log: list[dict]) -> list[tuple[int, list[dict], tuple]]:
    """(fold, its rows of the log, its colour, which no label has)."""
    from matplotlib import colormaps

    numbers = sorted({row["fold"] for row in log})
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(numbers)))
    rows = [[r for r in log if r["fold"] == k] for k in numbers]
    return list(zip(numbers, rows, colours, strict=True))


def set_epochs(ax, log: list[dict]) -> None:
    ticks = sorted({row["epoch"] + 1 for row in log})
    every = max(1, len(ticks) // 10)
    ax.set_xticks(ticks[::every])
    ax.set_xlabel("epoch")


def draw_losses(ax, log: list[dict]) -> None:
    for _, rows, colour in by_fold(log):
        epochs = [row["epoch"] + 1 for row in rows]
        train = [row["train_loss"] for row in rows]
        held_out = [row["val_loss"] for row in rows]
        ax.plot(epochs, train, "o--", color=colour, lw=1.2, ms=3)
        ax.plot(epochs, held_out, "o-", color=colour, lw=1.6, ms=3)
    set_epochs(ax, log)
    ax.set_title("Loss (dashed: training, solid: held out)")


def draw_macro_f1(ax, log: list[dict]) -> None:
    for k, rows, colour in by_fold(log):
        epochs = [row["epoch"] + 1 for row in rows]
        f1 = [row["macro_f1"] for row in rows]
        name = f"fold {k}" if k < 10 else None
        ax.plot(epochs, f1, "o-", color=colour, lw=1.6, ms=4, label=name)
    set_epochs(ax, log)
    ax.set_title("Macro-F1 at 0.5, held-out rows")
