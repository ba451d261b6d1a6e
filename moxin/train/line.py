"""A run in one line: what a person looks at while it trains."""

from collections.abc import Mapping
from typing import Any

from moxin.console import format_seconds

WIDTH = 118
"""Columns at most, on wide terminals and in files."""
WORTH = 0.02
"""Waits below this share of the time are not worth a word."""
SHORT = {"tokens": "tok", "pairs": "pairs"}
GAP = "  "


def line(
    name: str, row: Mapping[str, Any], *, total: int, n_steps: int, unit: str, width: int = WIDTH
) -> str:
    """The newest row of `job.name`, of `n_steps` and `total` units, in at most `width` columns.

    Where they are too few, what is last in `parts` is left out first: never the step, the loss and the rate.
    """
    done, recent = row[unit], row.get("recent", {})
    rate = recent.get("rate") or row[f"{unit}_per_second"]
    eta = row.get("eta_seconds", (total - done) / rate if rate else None)
    parts = [  # place in the line, text; in the order of what matters
        (0, f"{name} {min(100 * done // total, 100) if total else 100:.0f}%"),
        (1, f"{row['step']:,}/{n_steps:,}"),
        (2, f"loss {row['loss']:.3f}" if row["loss"] is not None else "loss not finite"),
        (3, f"{short(rate)} {SHORT.get(unit, unit)}/s"),
        (10, plural(recent.get("spikes", 0), "spike")),
        (11, f"{recent['skipped']} skipped" if recent.get("skipped") else ""),
        (9, f"ETA {format_seconds(eta)}" if eta is not None else ""),
        (4, f"MFU {100 * row['mfu']:.1f}%" if row.get("mfu") else ""),
        (12, f"data {100 * recent.get('data', 0):.0f}%" if recent.get("data", 0) > WORTH else ""),
        (13, f"ckpt {100 * recent.get('checkpoint', 0):.0f}%" if recent.get("checkpoint", 0) > WORTH else ""),
        (8, f"${row['dollars']:,.2f}" if row.get("dollars") else ""),
        (5, f"lr {row['lr']:.2e}"),
        (6, f"grad {row['grad_norm']:.2f}" if row.get("grad_norm") is not None else ""),
    ]
    shown: list[tuple[int, str]] = []
    left = width + len(GAP)
    for place, text in parts:
        if text and left >= len(text) + len(GAP):
            shown.append((place, text))
            left -= len(text) + len(GAP)
    return GAP.join(text for _, text in sorted(shown))


def short(value: float) -> str:
    """Three digits: `987`, `12.3k`, `1.23M`."""
    power = 0
    while abs(value) >= 999.5 and power < 3:
        value, power = value / 1000, power + 1
    digits = 0 if abs(value) >= 99.95 or (not power and abs(value) >= 10) else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{digits}f}{('', 'k', 'M', 'G')[power]}"


def plural(n: int, what: str) -> str:
    return "" if not n else f"{n} {what}" + ("" if n == 1 else "s")
