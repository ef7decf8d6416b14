"""A profile: measured kernels of one GPU, and where each row comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from profiles.tables import Implementation, TableKind, TableRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where rows come from.

    Args:
        framework: Serving engine, library of collectives, or what else ran the kernel.
        version: Its version.
        kernel_source: The kernel that it chose.
        source: Document or measurement that the rows were taken from.
        licence: Under which they may be passed on; empty for one's own.
        host_floor_us: What the host took to start the kernel, where that hid short ones; their rows are left out.
    """

    framework: str = ""
    version: str = ""
    kernel_source: str = ""
    source: str
    licence: str = ""
    host_floor_us: float | None = None

    @property
    def implementation(self) -> Implementation:
        """Return who ran the kernel."""
        return Implementation(framework=self.framework, version=self.version, kernel_source=self.kernel_source)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileMetadata:
    """What a profile says of itself.

    Args:
        device: Name of the GPU in the catalogue.
        gpus_per_node: GPUs of one node, for collectives; None where none were measured.
        measured: When and how, as far as it is known.
        software: Name to version of what ran.
        origins: Where rows come from, by name.
        rejected: Rows that were left out, and why.
    """

    device: str
    gpus_per_node: int | None
    measured: str
    software: Mapping[str, str]
    origins: Mapping[str, Origin]
    rejected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Measured kernels of one GPU.

    Args:
        metadata: What the profile says of itself.
        rows: Returns the rows of one kind, in the table's order; none where it was not measured. Raises
            ProfileFileError where the table cannot be read.
        name: Where it comes from, for messages and sources.
    """

    metadata: ProfileMetadata
    rows: Callable[[TableKind], tuple[TableRow, ...]]
    name: str
