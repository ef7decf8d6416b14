"""What the mirrors of files have in common: no other keys; of files that this program writes, no conversions either."""

from pydantic import BaseModel, BeforeValidator, ConfigDict

from planner.schema.translate import complaint, shown


class Closed(BaseModel):
    """What every mapping of a file has in common that users write."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Strict(Closed):
    """What every mapping of a file has in common that this program writes and reads back.

    Frozen dataclasses in its fields are validated as they are; pydantic hands this configuration down to them.
    """

    model_config = ConfigDict(strict=True)


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
