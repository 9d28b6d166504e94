"""Text of others: for a log or a terminal, and as names."""

import re

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""What Kubernetes takes as the name of most things (RFC 1123, 2.1)."""


def on_one_line(text: str) -> str:
    """*text* with what ends a line, or moves a terminal's cursor, escaped: names and requests may hold anything."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
