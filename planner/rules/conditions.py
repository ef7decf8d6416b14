"""What a Megatron-LM run may be, with the words that messages use for it: what tables of demands are written in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.readers.megatron_run import MegatronRun
from planner.rules.rule import Fix


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The one flag that makes a condition hold.

    Args:
        flag: The flag.
        dest: The value that it writes.
        value: What stands behind it; nothing for a switch.
    """

    flag: str
    dest: str
    value: str = ""

    def fix(self, run: MegatronRun, beside: tuple[str, ...]) -> Fix | None:
        """Return the change of a text that sets it.

        Args:
            run: The run.
            beside: Values of which the first that is given gets the flag in front of its own.
        """
        if self.value and run.arguments.is_given(self.dest):
            return replaced_value(run, self.dest, self.value)
        words = f"{self.flag} {self.value}".rstrip()
        if (use := run.arguments.use(self.dest)) is not None:
            return Fix(location=use.location, old=use.spelled, new=words) if not use.texts else None
        uses = [use for use in map(run.arguments.use, beside) if use is not None]
        if not uses or self.flag not in run.arguments.table.by_name:
            return None
        return Fix(location=uses[0].location, old=uses[0].spelled, new=f"{words} {uses[0].spelled}")


def nearest_fix(run: MegatronRun, dest: str, wanted: int, legal: Sequence[int]) -> Fix | None:
    """Return the change of a text that takes the nearest legal number; None where two are as near."""
    nearest = [number for number in legal if abs(number - wanted) == min(abs(other - wanted) for other in legal)]
    return replaced_value(run, dest, str(nearest[0])) if len(nearest) == 1 else None


def replaced_value(run: MegatronRun, dest: str, value: str) -> Fix | None:
    """Return the change of a text that gives a flag another value; None where it has not just one word behind it."""
    use = run.arguments.use(dest)
    if use is None or len(use.texts) != 1 or use.value_location == use.location:
        return None
    return Fix(location=use.value_location, old=use.texts[0], new=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Something that holds for a run or not.

    Args:
        text: How messages name it, "--overlap-grad-reduce" or "tp above 1".
        holds: Whether it holds.
        dests: The values that it looks at, the one to point at first.
        told: How messages name it in a run for which it holds; its text where that says enough.
        setting: What makes it hold, where that is one flag.
    """

    text: str
    holds: Callable[[MegatronRun], bool]
    dests: tuple[str, ...]
    told: Callable[[MegatronRun], str] | None = None
    setting: Setting | None = None

    def fix(self, run: MegatronRun, beside: tuple[str, ...]) -> Fix | None:
        """Return the change of a text that makes it hold, where that is one flag.

        Args:
            run: The run.
            beside: Values of which the first that is given gets the flag in front of its own.
        """
        return None if self.setting is None else self.setting.fix(run, beside)

    def said_of(self, run: MegatronRun) -> str:
        """Return how messages name it in a run for which it holds."""
        return self.text if self.told is None else self.told(run)

    def __and__(self, other: "Condition") -> "Condition":
        """Return that both hold."""
        return Condition(
            text=f"{self.text} with {other.text}",
            holds=lambda run: self.holds(run) and other.holds(run),
            dests=(*self.dests, *other.dests),
            told=lambda run: f"{self.said_of(run)} with {other.said_of(run)}",
        )

    def __or__(self, other: "Condition") -> "Condition":
        """Return that one of them holds."""
        return Condition(
            text=f"{self.text} or {other.text}",
            holds=lambda run: self.holds(run) or other.holds(run),
            dests=(*self.dests, *other.dests),
            told=lambda run: (self if self.holds(run) else other).said_of(run),
        )

    def __invert__(self) -> "Condition":
        """Return that it does not hold."""
        return Condition(text=f"no {self.text}", holds=lambda run: not self.holds(run), dests=self.dests)


def dest_of(flag: str) -> str:
    """Return the name under which Megatron-LM keeps the value of most flags."""
    return flag.removeprefix("--").replace("-", "_")


def on(flag: str, dest: str = "") -> Condition:
    """Return that a switch is on, by its flag or because another value sets it."""
    name = dest or dest_of(flag)
    setting = Setting(flag=flag, dest=name)
    return Condition(text=flag, holds=lambda run: run.value(name) is True, dests=(name,), setting=setting)


def given(flag: str, dest: str = "") -> Condition:
    """Return that a value is there, given or by default."""
    name = dest or dest_of(flag)
    return Condition(text=flag, holds=lambda run: run.value(name) is not None, dests=(name,))


def said(flag: str, dest: str = "") -> Condition:
    """Return that a value is there and is not 0, an empty list or an empty text."""
    name = dest or dest_of(flag)
    return Condition(text=flag, holds=lambda run: bool(run.value(name)), dests=(name,))


def one_of(flag: str, *values: object, dest: str = "") -> Condition:
    """Return that a value is one of some."""
    name = dest or dest_of(flag)
    shown = " or ".join(str(value) for value in values)
    return Condition(
        text=f"{flag} {shown}",
        holds=lambda run: run.value(name) in values,
        dests=(name,),
        told=lambda run: f"{flag} {run.value(name)}",
        setting=Setting(flag=flag, dest=name, value=str(values[0])) if len(values) == 1 else None,
    )


def above(flag: str, limit: int, dest: str = "") -> Condition:
    """Return that a number is above another; a number that is not there is not."""
    name = dest or dest_of(flag)

    def holds(run: MegatronRun) -> bool:
        value = run.value(name)
        return isinstance(value, int | float) and value > limit

    return Condition(
        text=f"{flag} above {limit}", holds=holds, dests=(name,), told=lambda run: f"{flag} {run.value(name)}"
    )


def between(flag: str, low: float, high: float) -> Condition:
    """Return that a number lies between two, which it may be."""
    name = dest_of(flag)

    def holds(run: MegatronRun) -> bool:
        value = run.value(name)
        return isinstance(value, int | float) and low <= value <= high

    return Condition(text=f"{flag} between {low:g} and {high:g}", holds=holds, dests=(name,))


def at_least(flag: str, least: int) -> Condition:
    """Return that a number is at least another."""
    name = dest_of(flag)

    def holds(run: MegatronRun) -> bool:
        value = run.value(name)
        return isinstance(value, int | float) and value >= least

    return Condition(text=f"{flag} of at least {least}", holds=holds, dests=(name,))


def has(flag: str, *words: str) -> Condition:
    """Return that a list holds one of some words."""
    name = dest_of(flag)
    return Condition(
        text=f"{flag} {' or '.join(words)}",
        holds=lambda run: not set(words).isdisjoint(run.words(name)),
        dests=(name,),
        told=lambda run: f"{flag} {' '.join(word for word in run.words(name) if word in words)}",
    )


def fact(
    text: str,
    holds: Callable[[MegatronRun], bool],
    *dests: str,
    told: Callable[[MegatronRun], str] | None = None,
) -> Condition:
    """Return something that takes more than one value to tell."""
    return Condition(text=text, holds=holds, dests=dests, told=told)


def exported(name: str, value: str) -> Condition:
    """Return that the script exports a variable with a value."""
    return Condition(text=f"{name}={value}", holds=lambda run: run.exported(name) == value, dests=())
