"""Lists that say which layer has what, as Megatron-LM's flags write them: `([0]*3+[1]*1)*12`, `MEM*E|MEM*E/*E`.

`megatron/training/arguments.py: _eval_pattern` and `core/models/hybrid/hybrid_layer_allocation.py` of megatron-core
0.19.2 give them their meaning. Nothing is evaluated as Python here.
"""

import re
from dataclasses import dataclass

TOKEN = re.compile(r"\s*([0-9]+|[\[\](),+*])")

MOST_LAYERS = 4096
"""Longest list that is written out; no model has as many layers."""

LAYER_LETTERS = frozenset("MG*D+-E")


class PatternError(ValueError):
    """A list is not one."""


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a sum of products of lists, such as `[0]*3+[1]*58`."""
    tokens = _tokens(text)
    reader = _Reader(tokens)
    numbers = reader.total()
    if reader.peek():
        raise PatternError(f"{reader.peek()!r} is not expected")
    return numbers


def _tokens(text: str) -> list[str]:
    found: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        match = TOKEN.match(text, position)
        if match is None:
            raise PatternError(f"{text[position]!r} is not part of a list")
        found.append(match.group(1))
        position = match.end()
    return found


class _Reader:
    """Reads sums of products of parts.

    `sum := product ("+" product)*`, `product := part ("*" number)*`, `part := "(" sum ")" | "[" numbers "]"`.
    """

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise PatternError(f"{expected or 'more'} is missing")
        self.position += 1
        return token

    def number(self) -> int:
        token = self.take()
        if not token.isdecimal() or len(token) > 4:
            raise PatternError(f"{token!r} is not a small number")
        return int(token)

    def total(self) -> tuple[int, ...]:
        numbers = self.product()
        while self.peek() == "+":
            self.take()
            numbers = _short(numbers + self.product())
        return numbers

    def product(self) -> tuple[int, ...]:
        numbers = self.part()
        while self.peek() == "*":
            self.take()
            times = self.number()
            if len(numbers) * times > MOST_LAYERS:
                raise PatternError(f"it has more than {MOST_LAYERS} layers")
            numbers = numbers * times
        return numbers

    def part(self) -> tuple[int, ...]:
        if self.peek() == "(":
            self.depth += 1
            if self.depth > 32:
                raise PatternError("its parentheses are too deep")
            self.take()
            numbers = self.total()
            self.take(")")
            self.depth -= 1
            return numbers
        self.take("[")
        listed: list[int] = []
        while self.peek() != "]":
            listed.append(self.number())
            if self.peek() == ",":
                self.take()
        self.take("]")
        return tuple(listed)


def _short(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if len(numbers) > MOST_LAYERS:
        raise PatternError(f"it has more than {MOST_LAYERS} layers")
    return numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class HybridPattern:
    """The layers of a hybrid model.

    Args:
        stages: Letters of each virtual pipeline stage; one, if the pattern does not split them.
        modules: Prediction modules.
        module: Letters of one of them.
    """

    stages: tuple[str, ...]
    modules: int
    module: str

    @property
    def letters(self) -> str:
        """Return the letters of all layers."""
        return "".join(self.stages)


def parse_hybrid(text: str) -> HybridPattern:
    """Return the stages and the prediction modules of a hybrid pattern."""
    main, *modules = text.split("/")
    modules = [module for module in modules if module]
    unknown = sorted(set("".join((main.replace("|", ""), *modules))) - LAYER_LETTERS)
    if unknown:
        raise PatternError(f"it has {', '.join(map(repr, unknown))}")
    if len(set(modules)) > 1:
        raise PatternError("its prediction modules differ")
    if len(main) > MOST_LAYERS:
        raise PatternError(f"it has more than {MOST_LAYERS} layers")
    return HybridPattern(stages=tuple(main.split("|")), modules=len(modules), module=modules[0] if modules else "")
