"""The metadata file of a profile, as it is written."""

from typing import Annotated, Final, Literal

from pydantic import Field

from profiles.profile import Origin, ProfileMetadata
from profiles.schema.strict import Strict

SCHEMA_VERSION: Final = 1

Text = Annotated[str, Field(max_length=2000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,39}$")]


class OriginEntry(Strict):
    """Where rows come from.

    Args:
        framework: Serving engine, library of collectives, or what else ran the kernel.
        version: Its version.
        kernel_source: The kernel that it chose.
        source: Document or measurement that the rows were taken from.
        licence: Under which they may be passed on.
        host_floor_us: What the host took to start the kernel, where that hid short ones.
    """

    framework: Text = ""
    version: Text = ""
    kernel_source: Text = ""
    source: Annotated[str, Field(min_length=1, max_length=2000)]
    licence: Text = ""
    host_floor_us: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None


class ProfileEntry(Strict):
    """What a profile says of itself.

    Args:
        schema_version: Version of the format.
        device: Name of the GPU in the catalogue.
        gpus_per_node: GPUs of one node, for collectives; left out where none were measured.
        measured: When and how, as far as it is known.
        software: Name to version of what ran: driver, CUDA, libraries.
        origins: Where rows come from, by the name that the rows' `origin` column has.
        rejected: Rows that were left out, and why.
    """

    schema_version: Literal[1]
    device: Annotated[str, Field(min_length=1, max_length=100)]
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = None
    measured: Text
    software: dict[str, Text] = Field(default_factory=dict)
    origins: Annotated[dict[Name, OriginEntry], Field(min_length=1)]
    rejected: list[Text] = Field(default_factory=list)

    def to_metadata(self) -> ProfileMetadata:
        """Return the profile's metadata as the rest of the package sees it."""
        return ProfileMetadata(
            device=self.device,
            gpus_per_node=self.gpus_per_node,
            measured=self.measured,
            software=dict(self.software),
            origins={name: Origin(**entry.model_dump()) for name, entry in self.origins.items()},
            rejected=tuple(self.rejected),
        )
