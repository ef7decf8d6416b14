"""Reads one Hugging Face `config.json` key by key, and knows at the end which keys nobody read.

A key that is neither read nor known to cost nothing is an error: it may change what the model costs.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from planner.documents import Document
from planner.errors import InputError, Location
from planner.models.sizes import MAX_SIZES, ShapeError, check_size
from planner.schema.translate import all_of, shown

ConfigPath = tuple[str | int, ...]

PUBLISHED = "Correct it, or use the config.json that was published with the model."
"""What to do about a config that no model can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inert:
    """A key that is understood only with values that change nothing.

    Args:
        values: The values that change nothing.
        meaning: What another value would mean, to end the sentence "... means".
    """

    values: tuple[object, ...]
    meaning: str


class ConfigReader:
    """One mapping of a config, its place, and the keys read so far.

    Args:
        fields: The mapping.
        document: The document that holds it.
        path: Where in the document it stands.
        architecture: What messages call the reader.
    """

    def __init__(self, fields: Mapping[str, object], *, document: Document, path: ConfigPath, architecture: str):
        self._fields = fields
        self._document = document
        self._path = path
        self._architecture = architecture
        self._read: set[str] = set()
        self._key_of: dict[str, str] = {}

    def location(self, key: str | None = None) -> Location:
        """Return the place of a key, or of the config."""
        return self._document.locate((*self._path, key) if key is not None else self._path)

    def key_of(self, field: str) -> str:
        """Return the key that a field was read from; the field's own name if it was not found."""
        return self._key_of.get(field, field)

    def has(self, key: str) -> bool:
        """Return whether a key is there, null included."""
        return key in self._fields

    def error(self, message: str, *, key: str | None = None, hint: str = PUBLISHED) -> InputError:
        """Return an error that points at a key."""
        return InputError(message, location=self.location(key), hint=hint)

    def item_error(self, message: str, *, key: str, index: int, hint: str = PUBLISHED) -> InputError:
        """Return an error that points at one entry of a list."""
        return InputError(message, location=self._document.locate((*self._path, key, index)), hint=hint)

    def shape_error(self, error: ShapeError) -> InputError:
        """Return the error of a size, at the key that it was read from."""
        key = self._key_of.get(f"{error.part}.{error.field}", self._key_of.get(error.field))
        return self.error(str(error), key=key)

    def value(self, key: str, *aliases: str, field: str | None = None) -> object:
        """Return the value under a key or one of its aliases; None when it is absent or null.

        Args:
            key: The name to look for first.
            aliases: Other names of the same thing.
            field: Field of the model that the value is read for; `key` if not given.
        """
        present = [name for name in (key, *aliases) if self._fields.get(name) is not None]
        self._read.update((key, *aliases))
        if not present:
            return None
        found = self._fields[present[0]]
        self._key_of[field or key] = present[0]
        for other in present[1:]:
            if not same(self._fields[other], found):
                raise self.error(
                    f"`{other}` = {shown(self._fields[other])} contradicts `{present[0]}` = {shown(found)}; "
                    "both name the same thing.",
                    key=other,
                    hint="Keep the one that is right.",
                )
        return found

    def optional_size(self, key: str, *aliases: str, field: str | None = None) -> int | None:
        """Return a whole number that a model can have, or None when it is absent or null.

        Args:
            key: The name to look for first.
            aliases: Other names of the same thing.
            field: The size, as `planner.models.sizes` calls it, with its part in front ("router.num_groups"); `key` if
            not
                given. A size of another name may be any whole number.
        """
        return self._checked(self._whole(key, *aliases, field=field), field or key)

    def optional_count(self, key: str, *aliases: str, field: str | None = None) -> int | None:
        """Return a size as `optional_size` does, or None when it is absent, null or 0."""
        return self._checked(self._whole(key, *aliases, field=field) or None, field or key)

    def size(self, key: str, *aliases: str, field: str | None = None) -> int:
        """Return a whole number that must be there."""
        found = self.optional_size(key, *aliases, field=field)
        if found is None:
            names = " or ".join(f"`{name}`" for name in (key, *aliases))
            raise self.error(f"{names} is missing; {self._architecture} needs it.")
        return found

    def optional_flag(self, key: str) -> bool | None:
        """Return a truth value, or None when it is absent or null."""
        found = self.value(key)
        if found is not None and not isinstance(found, bool):
            raise self._wrong_type(key, found, "true or false")
        return found if isinstance(found, bool) else None

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        found = self.optional_flag(key)
        return default if found is None else found

    def optional_number(self, key: str, *aliases: str, field: str | None = None) -> float | None:
        """Return a finite number, or None when it is absent or null."""
        found = self.value(key, *aliases, field=field)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise self._wrong_type(field or key, found, "a number")
        return float(found)

    def optional_text(self, key: str, *aliases: str) -> str | None:
        """Return a string, or None when it is absent or null."""
        found = self.value(key, *aliases)
        if found is not None and not isinstance(found, str):
            raise self._wrong_type(key, found, "text")
        return found

    def optional_section(self, key: str) -> "ConfigReader | None":
        """Return a reader of a nested mapping, or None when it is absent, null or empty."""
        found = self.value(key)
        if found is None or found == {}:
            return None
        if not isinstance(found, Mapping):
            raise self._wrong_type(key, found, "a mapping")
        return ConfigReader(found, document=self._document, path=(*self._path, key), architecture=self._architecture)

    def optional_list(self, key: str) -> Sequence[object] | None:
        """Return a list, or None when it is absent or null."""
        found = self.value(key)
        if found is None:
            return None
        if isinstance(found, str) or not isinstance(found, Sequence):
            raise self._wrong_type(key, found, "a list")
        return found

    def section(self, key: str) -> "ConfigReader":
        """Return a reader of a nested mapping that must be there."""
        found = self.optional_section(key)
        if found is None:
            raise self.error(f"`{key}` is missing; {self._architecture} needs it.")
        return found

    def item(self, key: str, index: int) -> "ConfigReader":
        """Return a reader of one entry of a list of mappings."""
        found = (self.optional_list(key) or ())[index]
        if not isinstance(found, Mapping):
            raise self.item_error(f"`{key}[{index}]` must be a mapping, not {shown(found)}.", key=key, index=index)
        path = (*self._path, key, index)
        return ConfigReader(found, document=self._document, path=path, architecture=self._architecture)

    def optional_sizes(self, key: str) -> tuple[int, ...] | None:
        """Return a list of whole numbers, or None when it is absent or null."""
        found = self.optional_list(key)
        if found is None:
            return None
        for index, item in enumerate(found):
            if isinstance(item, bool) or not isinstance(item, int):
                raise self.item_error(
                    f"`{key}[{index}]` must be a whole number, not {shown(item)}.", key=key, index=index
                )
        return tuple(item for item in found if isinstance(item, int))

    def words(self, key: str, known: Collection[str], *, length: int) -> tuple[str, ...] | None:
        """Return a list of `length` known words, one for each layer, or None when it is absent or null."""
        found = self.optional_list(key)
        if found is None:
            return None
        if len(found) != length:
            raise self.error(f"`{key}` names {len(found)} layers; the model has {length}.", key=key)
        for index, item in enumerate(found):
            if not isinstance(item, str) or item not in known:
                raise self.item_error(
                    f"`{key}[{index}]` = {shown(item)} is not a kind of layer that {self._architecture} has.",
                    key=key,
                    index=index,
                    hint=f"Known are {', '.join(known)}.",
                )
        return tuple(str(item) for item in found)

    def require_inert(self, keys: Mapping[str, Inert]) -> None:
        """Refuse each of these keys that is there with a value other than its inert ones."""
        for key, inert in keys.items():
            if key in self._read:
                continue
            self._read.add(key)
            if key not in self._fields or any(same(self._fields[key], value) for value in inert.values):
                continue
            allowed = " or ".join(shown(value) for value in inert.values)
            raise self.error(
                f"`{key}` = {shown(self._fields[key])} means {inert.meaning}, which is not planned for this class yet.",
                key=key,
                hint=f"Models whose `{key}` is {allowed} can be planned.",
            )

    def refuse_unread(self, *, harmless: frozenset[str]) -> None:
        """Refuse every key that was neither read nor is known to cost nothing."""
        unknown = [key for key in self._fields if key not in self._read and key not in harmless]
        if unknown:
            raise all_of(
                self.error(
                    f"{shown(key)} is not understood for {self._architecture}; it may change what the model costs.",
                    key=key,
                    hint="Remove it if it changes neither shapes nor operations, or describe the model inline.",
                )
                for key in unknown
            )

    def _whole(self, key: str, *aliases: str, field: str | None) -> int | None:
        found = self.value(key, *aliases, field=field)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
            raise self._wrong_type(field or key, found, "a whole number")
        return found if isinstance(found, int) else None

    def _checked(self, found: int | None, field: str) -> int | None:
        """Return a size if a model can have it."""
        name, key = field.rpartition(".")[2], self.key_of(field)
        if found is not None and name in MAX_SIZES:
            try:
                check_size(name, found, shown_as=key)
            except ShapeError as error:
                raise self.error(str(error), key=key) from None
        return found

    def _wrong_type(self, field: str, found: object, expected: str) -> InputError:
        key = self.key_of(field)
        return self.error(f"`{key}` must be {expected}, not {shown(found)}.", key=key, hint="Correct the value.")


def same(left: object, right: object) -> bool:
    """Return whether two values are equal without taking 0 for false or 1 for true."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right
