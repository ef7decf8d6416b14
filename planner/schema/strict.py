"""What files have in common that this program writes and reads back: no other keys, no conversions, a known version."""

from pydantic import BaseModel, BeforeValidator, ConfigDict

from planner.schema.translate import complaint, shown


class Strict(BaseModel):
    """What every mapping of such a file has in common.

    Frozen dataclasses in its fields are validated as they are; pydantic hands this configuration down to them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def known_version(version: int, what: str) -> BeforeValidator:
    """Return what refuses every `schema_version` but the one that this program writes.

    Args:
        version: That one.
        what: The files, for the message.
    """

    def check(value: object) -> object:
        if isinstance(value, bool) or value != version:
            raise complaint(
                f"`schema_version` = {shown(value)} is not known.",
                f"This version reads {what} of schema_version {version}; plan again.",
            )
        return value

    return BeforeValidator(check)
