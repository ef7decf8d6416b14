"""What a rule that a plan breaks is told as."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken rule.

    Args:
        rule: Its short name.
        message: What is wrong, with the numbers.
    """

    rule: str
    message: str
