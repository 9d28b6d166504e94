"""How long to wait before trying again: longer each time, and not all at once."""

import random

_DICE = random.Random()  # noqa: S311 (only so that not all come back at once)
_DOUBLINGS = 16


def spread(pause_s: float) -> float:
    """Seconds, up to half of them less."""
    return pause_s * _DICE.uniform(0.5, 1.0)


def pause_after(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds to wait after so many failures before the last one: *first_s*, doubled each time, up to *longest_s*."""
    return spread(min(longest_s, first_s * 2.0 ** min(failures, _DOUBLINGS)))
