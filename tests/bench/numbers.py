"""Summaries of samples."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence


class Summary(TypedDict):
    """Milliseconds."""

    n: int
    p50: float
    p99: float
    max: float


def summary(seconds: Sequence[float]) -> Summary:
    """Summarise durations given in seconds; all zero where there are none."""
    ordered = sorted(seconds)
    if not ordered:
        return Summary(n=0, p50=0.0, p99=0.0, max=0.0)
    return Summary(
        n=len(ordered), p50=ms(percentile(ordered, 50)), p99=ms(percentile(ordered, 99)), max=ms(ordered[-1])
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least *percent* of the values do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def ms(seconds: float) -> float:
    """Milliseconds, to the microsecond."""
    return round(seconds * 1000, 3)


def median(values: Sequence[float], digits: int = 3) -> float:
    """The median, rounded; 0 where there are none."""
    return round(statistics.median(values), digits) if values else 0.0


def ratio(value: float, base: float, digits: int = 2) -> float:
    """*value* to *base*; 0 where there is nothing to compare with."""
    return round(value / base, digits) if base else 0.0
