"""What the mirrors of cluster files, hardware and tables have in common."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A mapping of such a file: no other keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
