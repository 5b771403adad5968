"""How much each layer minds being pruned: its accuracy with one layer sparse at a time."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from esnac import files
from esnac.errors import EsnacError, SettingsError
from esnac.graphs.masks import attach_masks
from esnac.pruning.gradual import masked_master
from esnac.pruning.layers import aliases, matching, prunable
from esnac.pruning.magnitude import keep_largest
from esnac.settings import require

LEVELS = tuple(tenth / 10 for tenth in range(10))


@dataclass(frozen=True)
class Sensitivity:
    """`accuracy[name][i]`: with only that weight pruned to `levels[i]`; `dense` with none."""

    dense: float
    levels: tuple[float, ...]
    accuracy: Mapping[str, tuple[float, ...]]

    def to_csv(self) -> str:
        """One row per weight, one column per level."""
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["weight", *(f"{level:g}" for level in self.levels)])
        for name, row in self.accuracy.items():
            rows.writerow([name, *(f"{value:.6f}" for value in row)])
        return text.getvalue()

    def propose(self, drop: float = 0.01) -> dict[str, float]:
        """The highest level of each weight up to which none loses more than `drop` of accuracy.

        Weights are measured one at a time: pruned together they lose more, which training has to
        make good. Weights that mind even the lowest level are left out.
        """
        require_drop(drop)
        found = {}
        for name, row in self.accuracy.items():
            best = 0.0
            for level, value in zip(self.levels, row, strict=True):
                if value < self.dense - drop:
                    break
                best = level
            if best:
                found[name] = best
        return found

    def to_schedule(self, epochs: int, drop: float = 0.01) -> str:
        """The proposal as a file for `esnac.pruning.schedule`: gradually in two thirds of `epochs`.

        Raises EsnacError when nothing can be proposed, SettingsError for too few epochs.
        """
        end = end_of(epochs)
        proposed = self.propose(drop)
        if not proposed:
            raise EsnacError(
                f"No weight bears even the lowest level at a loss of {drop}: allow a larger drop."
            )
        head = f"epochs = {epochs}\n"
        tables = (
            f'\n[[pruners]]\nlayers = ["{name}"]\nsparsity = {level:g}\n'
            f"initial = 0.0\nend = {end}\n"
            for name, level in proposed.items()
        )
        return head + "".join(tables)

    def table(self, drop: float = 0.01) -> list[tuple[str, ...]]:
        """Rows of text: weight, accuracy at each level in percent, proposed sparsity."""
        proposed = self.propose(drop)
        head = ("weight", *(f"{100 * level:.0f}%" for level in self.levels), "proposed")
        rows = [
            (name, *(f"{100 * value:.2f}" for value in row), f"{proposed.get(name, 0):g}")
            for name, row in self.accuracy.items()
        ]
        return [head, *rows]


def require_drop(drop: float) -> None:
    require(0 <= drop < 1, "drop", "in [0, 1)", drop)


def end_of(epochs: int) -> int:
    """The end of the window of a schedule of so many epochs. Raises SettingsError for too few."""
    end = round(epochs * 2 / 3)
    require(end >= 2, "epochs", "at least 3", epochs)
    return end


def analyse(
    network: nn.Module,
    evaluate: Callable[[nn.Module], float],
    levels: Sequence[float] = LEVELS,
    layers: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Sensitivity:
    """Prunes each weight by magnitude to each level (ascending) in turn; `network` stays as it is.

    `evaluate` gives an accuracy as a fraction; give it validation images, since levels are chosen
    by it. Raises SettingsError for levels out of range and patterns that match nothing.
    """
    rising = all(a < b for a, b in zip(levels, levels[1:], strict=False))
    if not levels or not rising or not (levels[0] >= 0 and levels[-1] < 1):
        raise SettingsError(f"levels must be rising sparsities in [0, 1); got {list(levels)}.")
    network = copy.deepcopy(network)
    names = matching(aliases(network, list(prunable(network))), layers, exclude)
    dense = evaluate(network)
    found = {}
    for name in names:
        whole = masked_master(network, name)
        row = []
        for level in levels:
            attach_masks(network, {name: keep_largest(whole, level)})
            row.append(evaluate(network))
        attach_masks(network, {name: whole != 0})
        found[name] = tuple(row)
    return Sensitivity(dense, tuple(levels), found)


def kind_of_plot(path: Path) -> str:
    """Of the picture `path`. Raises EsnacError without matplotlib, and if it knows no such kind."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise EsnacError("The plot needs matplotlib: pip install 'esnac[plot]'.") from None
    kind = path.suffix.removeprefix(".")
    known = Figure().canvas.get_supported_filetypes()
    if kind not in known:
        raise EsnacError(f"{path}: no such kind of picture. Known: {', '.join(sorted(known))}.")
    return kind


def plot(result: Sensitivity, path: Path) -> None:
    """One curve per weight into `path` (svg, png, pdf). Raises as `kind_of_plot`."""
    kind = kind_of_plot(path)
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["viridis"]
    for number, (name, row) in enumerate(result.accuracy.items()):
        shade = colors(number / max(len(result.accuracy) - 1, 1))
        axes.plot(result.levels, [100 * v for v in row], marker=".", label=name, color=shade)
    axes.axhline(100 * result.dense, color="grey", linestyle=":", label="dense")
    axes.set_xlabel("share of zeros in one weight")
    axes.set_ylabel("accuracy / %")
    axes.legend(fontsize="x-small", ncols=2)
    files.write(path, lambda temporary: figure.savefig(temporary, format=kind))
