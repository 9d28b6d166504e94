"""Amounts of bytes as people write them.

The notation is Kubernetes' ``resource.Quantity`` for whole bytes: a number with an optional suffix, binary
(``Ki Mi Gi Ti Pi``) or decimal (``k M G T P``).
"""

import re
from typing import NewType

from csi_local.model.errors import InvalidArgument

Bytes = NewType("Bytes", int)
"""A number of bytes, never negative."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_BINARY = {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "Pi": 1024**5}
_DECIMAL = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "P": 1000**5}
_SHAPE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P|)")


def parse_bytes(text: str) -> Bytes:
    """Read ``20Gi``, ``1.5G`` or ``1048576``.

    Raises:
        InvalidArgument: it is not such an amount, or not a whole number of bytes.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(f"{text!r} is not an amount of bytes: write for example 20Gi, 500M or 1048576")
    number, suffix = match.groups()
    whole, _, fraction = number.partition(".")
    scale = (_BINARY | _DECIMAL)[suffix]
    part, rest = divmod(int(fraction or 0) * scale, 10 ** len(fraction))
    if rest:
        raise InvalidArgument(f"{text!r} is not a whole number of bytes")
    return Bytes(int(whole) * scale + part)


def format_bytes(amount: int) -> str:
    """Write an amount for people: ``20Gi`` where that is exact, else with one decimal (``19.5Gi``)."""
    for suffix in ("Pi", "Ti", "Gi", "Mi", "Ki"):
        scale = _BINARY[suffix]
        if abs(amount) >= scale:
            if amount % scale == 0:
                return f"{amount // scale}{suffix}"
            return f"{amount / scale:.1f}{suffix}"
    return str(amount)


def round_up(amount: int, step: int) -> Bytes:
    """The smallest multiple of *step* that is not below *amount*."""
    return Bytes(-(-amount // step) * step)
