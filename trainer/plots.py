"""The plots of a report, as SVG to be put into a page."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cognate.metrics import METRICS
from trainer.similarities import BINS, Similarities

# Text stays text, and the same data gives the same bytes.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "cognate", "font.size": 8, "axes.grid": True}


def loss_svg(losses: Sequence[tuple[int, float]]) -> Markup:
    """Draw the loss of each step.

    Args:
        losses: Steps and their losses.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*losses, strict=True), linewidth=0.8)
        axes.set(xlabel="step", ylabel="loss")
        return _svg(figure)


def metrics_svg(evaluations: Sequence[Mapping[str, float]]) -> Markup:
    """Draw each of the nine metrics by epoch.

    Args:
        evaluations: Before training, and after each epoch.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 6), layout="constrained")
        for axes, name in zip(figure.subplots(3, 3, sharex=True).flat, METRICS, strict=True):
            axes.plot([evaluation[name] for evaluation in evaluations], marker="o", markersize=3)
            axes.set_title(name, fontsize=8)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.ticklabel_format(useOffset=False)
        figure.supxlabel("epoch")
        return _svg(figure)


def cosines_svg(before: Similarities, after: Similarities) -> Markup:
    """Draw the shares of the cosines of positives and of negatives, before and after training."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        for axes, title, found in zip(
            figure.subplots(1, 2, sharex=True, sharey=True),
            ("before", "after"),
            (before, after),
            strict=True,
        ):
            _histogram(axes, found)
            axes.set(title=title, xlabel="cosine to the query")
        figure.axes[0].set_ylabel("share of the pairs")
        figure.axes[1].legend()
        return _svg(figure)


def _histogram(axes: Axes, found: Similarities) -> None:
    for label, counts in (("same label", found.positives), ("another label", found.negatives)):
        axes.stairs(counts / max(1, counts.sum()), BINS, fill=True, alpha=0.5, label=label)


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    # What comes before is the head of an XML file.
    return Markup(text[text.index("<svg") :])  # noqa: S704 - It holds numbers and words of ours.
