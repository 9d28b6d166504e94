"""Text of others, for a log or a terminal."""


def on_one_line(text: str) -> str:
    """*text* with what ends a line, or moves a terminal's cursor, escaped: names and requests may hold anything."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
