"""`vllm serve` commands that differ from a sound one in one flag: near misses and others, each from a seed of its own.

A near miss is a number one step from the written one or a neighbour of a divisor, another degree of the mesh, a flag, a
word or a key misspelt by one letter, a flag dropped, a switch beside those that are there, one value of a JSON changed.
The others give a flag another value that its parser takes (or not), or add a flag that the command does not have.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from planner.readers.flag_tables import FlagKind, FlagSpec, Framework, chosen_version, flag_table
from tests.corpora.vllm_bases import Base, bases

VERSION = chosen_version(Framework.VLLM, None)
SEEDS = {True: 20261122, False: 20261123}
"""By whether they are near misses."""

OUTSIDE = frozenset(
    {
        "--help",
        "--config",
        "--model",
        "--hf-config-path",
        "--revision",
        "--code-revision",
        "--device-ids",
        "--numa-bind",
        "--numa-bind-cpus",
        "--numa-bind-nodes",
        "--ray-workers-use-nsight",
        "--model-class-overrides",
    }
)
"""Flags whose effect is a file's, another machine's or the end of the program."""

DECIDES_A_LAYOUT = (
    "parallel",
    "nnodes",
    "node-rank",
    "expert",
    "eplb",
    "elastic",
    "all2all",
    "distributed-executor",
    "max-num",
    "max-model-len",
    "block-size",
    "kv-cache",
    "kv-transfer",
    "kv-offloading",
    "memory",
    "prefill",
    "prefix-caching",
    "dbo",
    "ubatch",
    "dcp",
    "cudagraph",
    "async-scheduling",
    "speculative",
    "quantization",
    "interleave",
    "dtype",
    "seqs",
    "offload",
    "hybrid-kv",
    "dp-",
)
"""Parts of the names of flags that are drawn eight times as often."""

DEGREES: Mapping[str, tuple[int, ...]] = {
    "--tensor-parallel-size": (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 32),
    "--pipeline-parallel-size": (1, 2, 3, 4, 5, 8),
    "--data-parallel-size": (1, 2, 3, 4, 6, 8, 16),
    "--data-parallel-size-local": (0, 1, 2, 3, 4, 5, 8, 16),
    "--data-parallel-rank": (0, 1, 2, 3, 4, 8),
    "--data-parallel-start-rank": (0, 1, 4, 8, 16),
    "--decode-context-parallel-size": (1, 2, 3, 4, 8, 16),
    "--prefill-context-parallel-size": (1, 2, 3, 4),
    "--nnodes": (1, 2, 3, 4),
    "--node-rank": (0, 1, 2, 3),
    "--max-model-len": (1024, 8192, 40960, 40961, 131072, 131073, 1000000),
    "--max-num-seqs": (1, 64, 1024, 4096, 8193, 16384),
    "--max-num-batched-tokens": (63, 64, 512, 2048, 4096, 16384, 131072),
}
"""Sizes of the mesh and of what runs in it."""

SWITCHES = (
    "--enable-expert-parallel",
    "--enable-eplb",
    "--enable-elastic-ep",
    "--data-parallel-external-lb",
    "--data-parallel-hybrid-lb",
    "--headless",
    "--no-enable-chunked-prefill",
    "--enable-dbo",
    "--no-enable-prefix-caching",
    "--enforce-eager",
    "--no-enable-expert-parallel",
)
"""Switches that decide a layout, or stand against others."""

SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A command that differs from a base in one flag.

    Args:
        base: The base.
        kind: How it differs.
        flag: The flag that differs, as it is written then.
        flags: All flags.
    """

    base: Base
    kind: str
    flag: str
    flags: Mapping[str, tuple[str, ...]]

    @property
    def name(self) -> str:
        """Return what tells it from the others: "dense: step --max-num-seqs 255"."""
        values = self.flags.get(self.flag, ())
        return " ".join((f"{self.base.name}: {self.kind} {self.flag}", *values)).strip()

    @property
    def words(self) -> tuple[str, ...]:
        """Return the words behind `vllm serve`."""
        if self.base.command is not None:
            return ("--config", "serve.yaml", *self.base.command)
        return (self.base.model, *(word for flag, values in self.flags.items() for word in (flag, *values)))

    @property
    def config_text(self) -> str | None:
        """Return the configuration file, where there is one."""
        if self.base.command is None:
            return None
        lines = (f"{flag.removeprefix('--')}: {_yaml(values)}\n" for flag, values in self.flags.items())
        return "".join((f"model: {self.base.model}\n", *lines))


def _yaml(values: Sequence[str]) -> str:
    """Return what stands behind a key: nothing makes a switch, several words a list."""
    if not values:
        return "true"
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


Maker = Callable[[random.Random, Base], "Mutation | None"]


def unchanged(base: Base) -> Mutation:
    """Return a base as it is."""
    return Mutation(base=base, kind="base", flag="", flags=base.flags)


def drawn(*, near: bool) -> Iterator[Mutation]:
    """Yield mutations without end, no two alike."""
    draw = random.Random(SEEDS[near])
    every = bases()
    names: set[str] = set()
    while True:
        made = draw.choice(NEAR_MISSES if near else OTHERS)(draw, draw.choice(every))
        if made is not None and made.flags != made.base.flags and made.name not in names:
            names.add(made.name)
            yield made


def _changed(base: Base, kind: str, flag: str, values: tuple[str, ...] | None, *, instead_of: str = "") -> Mutation:
    """Return a base with a flag set, or dropped where there are no values, or written where another stood."""
    replaced = instead_of or _written(base, flag)
    flags: dict[str, tuple[str, ...]] = {}
    for name, before in base.flags.items():
        if name != replaced:
            flags[name] = before
        elif values is not None:
            flags[flag] = values
    if values is not None and flag not in flags:
        flags[flag] = values
    return Mutation(base=base, kind=kind, flag=flag, flags=flags)


def _written(base: Base, flag: str) -> str:
    """Return how a base writes a flag: short ones stand for long ones."""
    return next((name for name in base.flags if SHORT.get(name, name) == flag), flag)


def _numbers(base: Base) -> tuple[str, ...]:
    return tuple(name for name, values in base.flags.items() if len(values) == 1 and values[0].isdecimal())


def step(draw: random.Random, base: Base) -> Mutation:
    """Return a whole number one step from what is written."""
    flag = draw.choice(_numbers(base))
    return _changed(base, "step", flag, (str(int(base.flags[flag][0]) + draw.choice((-1, 1))),))


def neighbour(draw: random.Random, base: Base) -> Mutation:
    """Return a whole number that is a half, a double, three times or three halves of what is written."""
    flag = draw.choice(_numbers(base))
    written = int(base.flags[flag][0])
    return _changed(base, "neighbour", flag, (str(draw.choice((written // 2, written * 2, written * 3 // 2))),))


def degree(draw: random.Random, base: Base) -> Mutation:
    """Return a command with another degree or size of its mesh."""
    flag, values = draw.choice(tuple(DEGREES.items()))
    return _changed(base, "degree", flag, (str(draw.choice(values)),))


def switched(draw: random.Random, base: Base) -> Mutation | None:
    """Return a command with a switch that it does not have."""
    flag = draw.choice(SWITCHES)
    return _changed(base, "switched", flag, ()) if flag not in base.flags else None


def _wrong(draw: random.Random, word: str, start: int) -> str:
    """Return a word with one letter lost, doubled, changed or swapped with its neighbour, from a place on."""
    place = draw.randrange(start, len(word) - 1)
    letter = draw.choice("abcdefghijklmnopqrstuvwxyz-_")
    return draw.choice(
        (
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
            word[:place] + letter + word[place + 1 :],
            word[:place] + word[place + 1] + word[place] + word[place + 2 :],
            word[:-1],
        )
    )


def misspelt(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag misspelt by one letter."""
    flag = draw.choice([name for name in base.flags if len(name) > 4])
    wrong = _wrong(draw, flag, 3)
    return None if wrong in base.flags else _changed(base, "misspelt", wrong, base.flags[flag], instead_of=flag)


def dropped(draw: random.Random, base: Base) -> Mutation:
    """Return a command without one of its flags."""
    return _changed(base, "dropped", draw.choice(tuple(base.flags)), None)


def misspelt_word(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag that takes one of a few words with one of them, misspelt by a letter."""
    known = flag_table(Framework.VLLM, VERSION).by_name
    worded = [known[name] for name in base.flags if name in known and known[name].choices]
    flag = draw.choice(worded or [one for one in _weighted() if one.choices and one.kind is FlagKind.VALUE])
    word = draw.choice([choice for choice in flag.choices or () if len(choice) > 2])
    return _changed(base, "misspelt word", flag.name, (_wrong(draw, word, 1),))


def in_the_json(draw: random.Random, base: Base) -> Mutation | None:
    """Return a JSON value with one key misspelt, dropped or changed by a little."""
    flags = [name for name, values in base.flags.items() if values and values[0].startswith("{")]
    if not flags:
        return None
    flag = draw.choice(flags)
    mapping = json.loads(base.flags[flag][0])
    key = draw.choice(tuple(mapping))
    value = mapping[key]
    how = draw.choice(("misspelt", "dropped", "changed", "changed"))
    if how == "misspelt":
        mapping[_wrong(draw, key, 1)] = mapping.pop(key)
    elif how == "dropped":
        del mapping[key]
    elif isinstance(value, int):
        mapping[key] = draw.choice((value - 1, value + 1, value * 2, -value, 0, str(value), value + 0.5))
    else:
        mapping[key] = draw.choice((_wrong(draw, value, 1), value.upper(), value.replace("_", "-"), None))
    return _changed(base, f"{how} in the JSON", flag, (json.dumps(mapping),))


def another_value(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag of the command with another value that its parser takes."""
    known = flag_table(Framework.VLLM, VERSION).by_name
    flag = draw.choice([name for name, values in base.flags.items() if values])
    values = _values(draw, known[flag])
    return None if values is None else _changed(base, "another value", flag, values)


def another_flag(draw: random.Random, base: Base) -> Mutation | None:
    """Return a command with a flag that it does not have, and a value that its parser takes."""
    known = flag_table(Framework.VLLM, VERSION).by_name
    there = {known[name].dest for name in base.flags}
    flag = draw.choice([flag for flag in _weighted() if flag.dest not in there])
    if flag.kind in {FlagKind.TRUE, FlagKind.BOOLEAN_OPTIONAL}:
        name = draw.choice([name for name in flag.names if name.startswith("--")])
        return _changed(base, "another flag", name, ())
    values = _values(draw, flag)
    return None if values is None else _changed(base, "another flag", flag.name, values)


def wrong_value(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag with a value too many, none, or one that its parser does not take."""
    flag = draw.choice(tuple(base.flags))
    written = base.flags[flag]
    if not written:
        return _changed(base, "wrong value", flag, (draw.choice(("true", "1", "8")),))
    wrong = ((), (*written, *written[:1]), (f"{written[0]}x",), (f"{written[0]}.5",), (f"-{written[0]}",))
    return _changed(base, "wrong value", flag, draw.choice(wrong))


NEAR_MISSES: tuple[Maker, ...] = (
    step,
    step,
    neighbour,
    neighbour,
    degree,
    degree,
    switched,
    misspelt,
    misspelt_word,
    dropped,
    dropped,
    in_the_json,
)
OTHERS: tuple[Maker, ...] = (degree, degree, another_value, another_value, another_flag, another_flag, wrong_value)


@cache
def _weighted() -> tuple[FlagSpec, ...]:
    """Return the flags to draw from, those that decide a layout eight times."""
    kinds = {FlagKind.OTHER, FlagKind.POSITIONAL}
    table = flag_table(Framework.VLLM, VERSION)
    flags = [flag for flag in table.flags if flag.kind not in kinds and not set(flag.names) & OUTSIDE]
    return tuple(flag for flag in flags for _ in range(8 if any(part in flag.name for part in DECIDES_A_LAYOUT) else 1))


def _values(draw: random.Random, flag: FlagSpec) -> tuple[str, ...] | None:
    """Return values that the parser of a flag takes; None where any text would do."""
    kind = flag.type_name.removeprefix("optional_")
    if flag.choices is not None:
        return (draw.choice(flag.choices),)
    if kind in {"int", "human_readable_int", "human_readable_int_or_auto"}:
        return (str(draw.choice((0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 100, 1024, 8192))),)
    if kind == "float":
        return (draw.choice(("0.0", "0.1", "0.5", "0.95", "1.0", "2.0", "10")),)
    return None
