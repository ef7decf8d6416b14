"""The base of the mirrors of files that this program writes and reads back: no other keys, no silent conversions."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """What every mapping of such a file has in common.

    Frozen dataclasses in its fields are validated as they are; pydantic hands this configuration down to them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
