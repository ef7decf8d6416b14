"""Text of files and file names made harmless for a terminal and a log: one line, nothing that controls either."""


def plain(text: str) -> str:
    r"""Return text on one line, with what does not print written as `\x1b`, `\n` or `\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
