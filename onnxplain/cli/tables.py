"""Rows as text, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SCHEMA_VERSION = 1

# columns of score tables: no score without its protocol and its reduction
SHORT = {"method": "method", "protocol": "protocol", "reduction": "reduction"}
WIDE = {"heatmap": "heatmap", **SHORT, "target": "target"}
METRICS = {f"{game}_{kind}": f"{game} {kind}" for kind in ("auc", "mean") for game in ("insertion", "deletion")} | {
    "difference_auc": "difference auc"
}


def as_json(document: Mapping[str, Any], indent: int | None = 2) -> str:
    """A JSON document with its schema version; NaN and Inf become null."""
    from onnxplain.engine.explanation import plain

    return json.dumps({"schema_version": SCHEMA_VERSION} | plain(document), indent=indent, allow_nan=False)


def described(layer: Mapping[str, Any]) -> str:
    """An inner layer in a line."""
    height, width = layer["grid"]
    prefix = f", {layer['prefix_tokens']} tokens before it" * bool(layer["prefix_tokens"])
    return f"{layer['name']} ({layer['operator']}, {layer['channels']} channels of {height} x {width}{prefix})"


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a header; columns are those of the first row, and a list is left out."""
    out = io.StringIO()
    columns = [name for name, value in (rows[0] if rows else {}).items() if not isinstance(value, list)]
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def as_rows(rows: Sequence[Mapping[str, Any]], form: str, **more: Any) -> str:
    """Rows as a document in the format `form`: json, jsonl or csv. `more` goes into a JSON document."""
    if form == "json":
        return as_json({"rows": list(rows), **more})
    if form == "jsonl":
        return "\n".join(as_json(row, indent=None) for row in rows)
    return as_csv(rows)


def as_text(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A table with aligned columns, `{key: heading}`, that grep, cut and awk can read."""
    lines = [list(columns.values()), *([cell(row.get(key)) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The metrics of rows as columns: those of insertion and deletion in their order, then others."""
    found = dict.fromkeys(row["metric"] for row in rows)
    known = {name: heading for name, heading in METRICS.items() if name in found}
    return known | {name: name.replace("_", " ") for name in found if name not in known}


def cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def wide(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Result rows as one row for each heatmap and protocol, with its metrics as columns."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in WIDE), dict(row))[row["metric"]] = row["value"]
    return list(found.values())
