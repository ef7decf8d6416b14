"""Runs that differ from a sound one in one flag: half of them near misses, all from one seed.

A near miss is a value one step from the written one or a neighbour of a divisor, a flag misspelt by one letter, a flag
dropped, a switch that contradicts another. The others give a flag a value that its parser takes (or not), or a flag
that the run does not have.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from planner.readers.flag_tables import FlagKind, FlagSpec, Framework, flag_table
from tests.corpora.megatron_bases import Base, bases

VERSION = "0.19.2"
SEED = 20261122
COUNT = 400

OUTSIDE = frozenset(
    {
        "--help",
        "-h",
        "--yaml-cfg",
        "--enable-msc",
        "--disable-msc",
        "--use-checkpoint-args",
        "--te-precision-config-file",
        "--result-rejected-tracker-filename",
        "--heterogeneous-layers-config-path",
        "--heterogeneous-layers-config-encoded-json",
        "--spec",
        "--deterministic-mode",
        "--checkpoint-activations",
        "--nccl-communicator-config-path",
    }
)
"""Flags whose effect is a file's, another package's or the end of the program."""

DECIDES_A_LAYOUT = (
    "parallel",
    "pipeline",
    "virtual",
    "expert",
    "moe",
    "batch",
    "seq",
    "recompute",
    "offload",
    "overlap",
    "optimizer",
    "fsdp",
    "fp8",
    "fp16",
    "bf16",
    "layers",
    "heads",
    "hidden",
    "groups",
    "context",
    "cp-comm",
    "cuda-graph",
    "mtp",
    "ckpt",
    "dtype",
    "hybrid",
    "mamba",
    "rotary",
    "position",
    "latent",
    "weight",
    "train",
    "lr",
)
"""Parts of the names of flags that are drawn four times as often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A run that differs from a base in one flag.

    Args:
        base: The base.
        kind: How it differs.
        flag: The flag that differs, as it is written then.
        flags: All flags.
        environment: What the script exports.
    """

    base: Base
    kind: str
    flag: str
    flags: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, str]

    @property
    def name(self) -> str:
        """Return what tells it from the others: "dense: step --num-layers 23"."""
        values = self.flags.get(self.flag, ())
        return " ".join((f"{self.base.name}: {self.kind} {self.flag}", *values))

    @property
    def words(self) -> tuple[str, ...]:
        """Return the argument list."""
        return tuple(word for flag, values in self.flags.items() for word in (flag, *values))


DEGREES: Mapping[str, tuple[int, ...]] = {
    "--tensor-model-parallel-size": (1, 2, 3, 4, 8, 16),
    "--pipeline-model-parallel-size": (1, 2, 3, 4, 6, 8),
    "--context-parallel-size": (1, 2, 3, 4, 8),
    "--expert-model-parallel-size": (1, 2, 3, 4, 8, 16, 32),
    "--expert-tensor-parallel-size": (1, 2, 4, 8),
    "--num-virtual-stages-per-pipeline-rank": (1, 2, 3, 4),
    "--num-layers-per-virtual-pipeline-stage": (1, 2, 3, 4),
    "--decoder-first-pipeline-num-layers": (1, 2, 4, 6, 8),
    "--decoder-last-pipeline-num-layers": (1, 2, 4, 6, 8),
    "--num-query-groups": (1, 2, 3, 4, 8, 16),
    "--num-experts": (1, 4, 6, 8, 12, 64),
    "--num-layers": (8, 12, 17, 20, 24, 30, 48),
    "--num-attention-heads": (8, 12, 15, 20, 24, 32),
    "--micro-batch-size": (1, 2, 3, 4, 8),
    "--global-batch-size": (1, 8, 24, 32, 96, 256),
    "--seq-length": (1024, 2048, 4095, 4100, 8192),
    "--microbatch-group-size-per-virtual-pipeline-stage": (1, 2, 3, 4, 8),
    "--recompute-num-layers": (1, 2, 4, 8, 64),
    "--tensor-parallel-num-weight-shards": (1, 2, 3, 4, 8),
    "--num-distributed-optimizer-instances": (1, 2, 3, 4),
    "--cpu-offloading-num-layers": (0, 1, 8, 64),
    "--mtp-num-layers": (0, 1, 2),
}
"""Sizes of the mesh and of what it splits."""

Maker = Callable[[random.Random, Base], "Mutation | None"]


def unchanged(base: Base) -> Mutation:
    """Return a base as it is."""
    return Mutation(base=base, kind="base", flag="", flags=base.flags, environment=base.environment)


def mutations() -> tuple[Mutation, ...]:
    """Return the corpus: no two alike, near misses and others in turn."""
    draw = random.Random(SEED)
    every = bases()
    found: dict[str, Mutation] = {}
    while len(found) < COUNT:
        makers: Sequence[Maker] = NEAR_MISSES if len(found) % 2 == 0 else OTHERS
        made = draw.choice(makers)(draw, draw.choice(every))
        if made is not None and made.flags != made.base.flags:
            found.setdefault(made.name, made)
    return tuple(found.values())


def _changed(base: Base, kind: str, flag: str, values: tuple[str, ...] | None, *, instead_of: str = "") -> Mutation:
    """Return a base with a flag set, or dropped where there are no values, or written where another stood."""
    flags: dict[str, tuple[str, ...]] = {}
    for name, written in base.flags.items():
        if name == instead_of:
            flags[flag] = values or ()
        elif name != flag or values is not None:
            flags[name] = written if name != flag or values is None else values
    if values is not None and flag not in flags:
        flags[flag] = values
    return Mutation(base=base, kind=kind, flag=flag, flags=flags, environment=base.environment)


def _numbers(base: Base) -> tuple[str, ...]:
    return tuple(name for name, values in base.flags.items() if len(values) == 1 and values[0].isdecimal())


def step(draw: random.Random, base: Base) -> Mutation | None:
    """Return a whole number one step from what is written."""
    flag = draw.choice(_numbers(base))
    value = int(base.flags[flag][0]) + draw.choice((-1, 1))
    return _changed(base, "step", flag, (str(value),)) if value >= 0 else None


def neighbour(draw: random.Random, base: Base) -> Mutation | None:
    """Return a whole number that is a half, a double, three times or three halves of what is written."""
    flag = draw.choice(_numbers(base))
    written = int(base.flags[flag][0])
    value = draw.choice((written // 2, written * 2, written * 3, written * 3 // 2))
    return _changed(base, "neighbour", flag, (str(value),))


def degree(draw: random.Random, base: Base) -> Mutation | None:
    """Return a run with another degree or size of its mesh."""
    flag, values = draw.choice(tuple(DEGREES.items()))
    return _changed(base, "degree", flag, (str(draw.choice(values)),))


def misspelt(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag with one letter lost, doubled, changed or swapped with its neighbour."""
    flag = draw.choice(tuple(base.flags))
    place = draw.randrange(3, len(flag) - 1)
    letter = draw.choice("abcdefghijklmnopqrstuvwxyz-_")
    wrong = draw.choice(
        (
            flag[:place] + flag[place + 1 :],
            flag[:place] + flag[place] + flag[place:],
            flag[:place] + letter + flag[place + 1 :],
            flag[:place] + flag[place + 1] + flag[place] + flag[place + 2 :],
        )
    )
    if wrong == flag or wrong in base.flags:
        return None
    return _changed(base, "misspelt", wrong, base.flags[flag], instead_of=flag)


def dropped(draw: random.Random, base: Base) -> Mutation | None:
    """Return a run without one of its flags."""
    return _changed(base, "dropped", draw.choice(tuple(base.flags)), None)


def switched(draw: random.Random, base: Base) -> Mutation | None:
    """Return a run with a switch that it does not have."""
    switches = [flag for flag in _weighted() if flag.nargs == 0 and not set(flag.names) & set(base.flags)]
    return _changed(base, "switched", draw.choice(switches).name, ())


def in_the_list(draw: random.Random, base: Base) -> Mutation | None:
    """Return a list or a pattern with one part more, less or changed."""
    flags = [name for name, values in base.flags.items() if len(values) > 1 or "|" in "".join(values)]
    if not flags:
        return None
    flag = draw.choice(flags)
    values = list(base.flags[flag])
    if len(values) > 1:
        values.pop(draw.randrange(len(values)))
    else:
        place = draw.randrange(len(values[0]))
        values[0] = values[0][:place] + draw.choice(("", "t", "|", "m", "M", "-")) + values[0][place + 1 :]
    return _changed(base, "in the list", flag, tuple(values))


def another_value(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag of the run with another value that its parser takes."""
    known = flag_table(Framework.MEGATRON, VERSION).by_name
    flag = draw.choice([name for name, values in base.flags.items() if values and name not in OUTSIDE])
    values = _values(draw, known[flag])
    return None if values is None else _changed(base, "another value", flag, values)


def another_flag(draw: random.Random, base: Base) -> Mutation | None:
    """Return a run with a flag that it does not have, and a value that its parser takes."""
    flag = draw.choice([flag for flag in _weighted() if flag.nargs != 0 and not set(flag.names) & set(base.flags)])
    values = _values(draw, flag)
    return None if values is None else _changed(base, "another flag", flag.name, values)


def wrong_value(draw: random.Random, base: Base) -> Mutation | None:
    """Return a flag with a value too many, none, or one that its parser does not take."""
    known = flag_table(Framework.MEGATRON, VERSION).by_name
    flag = draw.choice(tuple(base.flags))
    written = base.flags[flag]
    if not written:
        return _changed(base, "wrong value", flag, (draw.choice(("true", "1", "8")),))
    numeric = known[flag].type_name in {"int", "float"}
    return _changed(
        base,
        "wrong value",
        flag,
        draw.choice(
            (
                (),
                (*written, *written[:1]),
                (("many",) if numeric else (f"{written[0]}x",)),
                ((f"{written[0]}.5",) if numeric else (written[0].upper(),)),
            )
        ),
    )


NEAR_MISSES: tuple[Maker, ...] = (
    step,
    step,
    neighbour,
    neighbour,
    degree,
    degree,
    misspelt,
    dropped,
    dropped,
    switched,
    in_the_list,
)
OTHERS: tuple[Maker, ...] = (
    degree,
    degree,
    another_value,
    another_value,
    another_flag,
    another_flag,
    wrong_value,
    switched,
)


@cache
def _weighted() -> tuple[FlagSpec, ...]:
    """Return the flags to draw from, those that decide a layout four times."""
    kinds = {FlagKind.OTHER, FlagKind.POSITIONAL}
    table = flag_table(Framework.MEGATRON, VERSION)
    flags = [flag for flag in table.flags if flag.kind not in kinds and not set(flag.names) & OUTSIDE]
    return tuple(flag for flag in flags for _ in range(4 if any(part in flag.name for part in DECIDES_A_LAYOUT) else 1))


def _values(draw: random.Random, flag: FlagSpec) -> tuple[str, ...] | None:
    """Return values that the parser of a flag takes; None where any text would do."""
    count = flag.nargs if isinstance(flag.nargs, int) else 1
    if flag.choices is not None:
        return tuple(draw.choice(flag.choices) for _ in range(count))
    if flag.type_name == "int":
        return tuple(str(draw.choice((0, 1, 2, 3, 4, 6, 8, 12, 16, 32, 48, 64, 100, 1024))) for _ in range(count))
    if flag.type_name == "float":
        return tuple(draw.choice(("0.0", "0.1", "0.5", "1.0", "2.0", "10")) for _ in range(count))
    return None
