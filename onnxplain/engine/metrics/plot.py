"""Insertion and deletion curves as a picture."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.engine.atomic import write_atomically
from onnxplain.errors import UsageError, importing

GAMES = {"insertion_auc": "insertion", "deletion_auc": "deletion"}


def plot_curves(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str = "", overwrite: bool = False
) -> None:
    """Write the curves of result rows as PNG: a row for each protocol, insertion on the left, deletion on the right.

    Args:
        rows: with `method`, `metric`, `protocol`, `reduction`, `target`, `value` and `curve`; rows without such
            a curve are passed over.

    Raises:
        UsageError: no row has a curve.
        BackendMissing: matplotlib is not installed.
        OutputError: the file is there already (without `overwrite`), or cannot be written.
    """
    with importing("matplotlib", "demo"):
        from matplotlib.figure import Figure  # draws with Agg: no display, no state of pyplot
    rows = [row for row in rows if "curve" in row and row["metric"] in GAMES]
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    if not rows:
        raise UsageError("no row has a curve to draw; next: keep the curves when scoring")
    figure = Figure(figsize=(10, 0.6 + 3.4 * len(protocols)), layout="constrained")
    axes = figure.subplots(len(protocols), 2, squeeze=False, sharex=True, sharey=True)
    for row in rows:
        axis = axes[protocols.index(row["protocol"]), list(GAMES).index(row["metric"])]
        share = np.linspace(0, 1, len(row["curve"]))
        axis.plot(share, row["curve"], label=f"{row['method']}, {row['reduction']}: AUC {row['value']:.3f}")
        axis.set_title(f"{GAMES[row['metric']]}, {row['protocol']}")
        axis.set_ylabel(f"probability of class {row['target']}")
    for axis in axes.flat:
        axis.legend(title="method, reduction over channels", fontsize="small", title_fontsize="small")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("share of the steps")
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue(), overwrite=overwrite)
