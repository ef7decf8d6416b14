"""What a figure must keep to, and whether it does."""

from dataclasses import dataclass
from enum import StrEnum
from math import floor, isfinite, isnan, log10

LEAST_DIGITS = 4
MOST_DIGITS = 17
"""Digits that tell any two floats apart."""


class Verdict(StrEnum):
    """What came of a measure."""

    MET = "met"
    MISSED = "missed"
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A range of figures, ends included.

    Args:
        low: The least figure that keeps it; None without.
        high: The largest one; None without.
        unit: What figures are counted in; empty for plain numbers.
        beyond: The least figure itself does not keep it.
        decimals: Decimals to which the target is known: figures are rounded to them before they are held against it.
            None holds figures as they are.
    """

    low: float | None = None
    high: float | None = None
    unit: str = ""
    beyond: bool = False
    decimals: int | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError("a target without an end is kept by any figure")

    @property
    def text(self) -> str:
        """Return it in words: "<= 6.5 %"."""
        if self.low is None:
            words = f"<= {self.high:g}"
        elif self.high is None:
            words = f"{'>' if self.beyond else '>='} {self.low:g}"
        elif self.low == self.high:
            words = f"= {self.low:g}"
        else:
            words = f"{self.low:g} to {self.high:g}"
        return f"{words} {self.unit}".rstrip()

    def holds(self, figure: float) -> bool:
        """Return whether a figure keeps it; no number is kept by what is not a number."""
        value = figure if self.decimals is None or isnan(figure) else round(figure, self.decimals)
        if isnan(value) or (self.high is not None and value > self.high):
            return False
        return self.low is None or value > self.low or (value == self.low and not self.beyond)

    def said(self, figure: float) -> str:
        """Return a figure in words, with as many digits as tell it from the target's ends."""
        whole = floor(log10(abs(figure))) + 1 if isfinite(figure) and figure else 0
        digits = min(max(LEAST_DIGITS, whole), MOST_DIGITS)
        while digits < MOST_DIGITS and self.holds(float(f"{figure:.{digits}g}")) != self.holds(figure):
            digits += 1
        return f"{figure:.{digits}g} {self.unit}".rstrip()


def at_most(high: float, unit: str = "", *, decimals: int | None = None) -> Target:
    """Return the target of figures up to one."""
    return Target(high=high, unit=unit, decimals=decimals)


def at_least(low: float, unit: str = "", *, decimals: int | None = None) -> Target:
    """Return the target of figures from one on."""
    return Target(low=low, unit=unit, decimals=decimals)


def above(low: float, unit: str = "") -> Target:
    """Return the target of figures beyond one."""
    return Target(low=low, unit=unit, beyond=True)


def exactly(value: float, unit: str = "") -> Target:
    """Return the target of one figure."""
    return Target(low=value, high=value, unit=unit)


def between(low: float, high: float, unit: str = "") -> Target:
    """Return the target of figures from one to another."""
    return Target(low=low, high=high, unit=unit)
