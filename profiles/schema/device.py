"""One GPU as the catalogue or a user writes it down.

A figure is a quantity, or `{value, document, note}`: the catalogue always names the document, and a user who writes
a GPU of their own may.
"""

from collections.abc import Mapping
from typing import Annotated, Final, Generic, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from profiles.hardware import Device, PeerTopology
from profiles.schema.finding import fail
from profiles.schema.strict import Strict
from profiles.schema.units import Bytes, BytesPerSecond, FlopsPerSecond, Watts

STATED_BY_USER: Final = "stated in the cluster file"

HostLink = Literal["pcie3", "pcie4", "pcie5", "pcie6", "c2c"]
PcieLink = Literal["pcie3", "pcie4", "pcie5", "pcie6"]
Format = Literal["fp4", "fp8", "int8", "fp16", "bf16", "tf32", "fp32"]
Architecture = Literal["volta", "ampere", "ada", "hopper", "blackwell", "cdna2", "cdna3", "cdna4"]

# One direction of a x16 link, as data sheets print it; 128b/130b coding takes another 1.5 % (PCIe Base Specification).
PCIE_X16_BYTES_PER_SECOND: Final[Mapping[str, float]] = {"pcie3": 16e9, "pcie4": 32e9, "pcie5": 64e9, "pcie6": 128e9}

T = TypeVar("T")


class Figure(Strict, Generic[T]):
    """A value with the document that prints it."""

    value: T
    document: Annotated[str, Field(min_length=1, max_length=300)] = STATED_BY_USER
    note: Annotated[str, Field(max_length=300)] = ""

    @property
    def source(self) -> str:
        """Return where the value comes from, in one phrase."""
        return f"{self.document}: {self.note}" if self.note else self.document


def _as_figure(value: object) -> object:
    """Return a bare quantity as a figure, and anything else as it is."""
    return value if isinstance(value, dict | Figure) else {"value": value}


SizeFigure = Annotated[Figure[Bytes], BeforeValidator(_as_figure, json_schema_input_type=Bytes | Figure[Bytes])]
BandwidthFigure = Annotated[
    Figure[BytesPerSecond], BeforeValidator(_as_figure, json_schema_input_type=BytesPerSecond | Figure[BytesPerSecond])
]
FlopsFigure = Annotated[
    Figure[FlopsPerSecond], BeforeValidator(_as_figure, json_schema_input_type=FlopsPerSecond | Figure[FlopsPerSecond])
]
PowerFigure = Annotated[Figure[Watts], BeforeValidator(_as_figure, json_schema_input_type=Watts | Figure[Watts])]
Count = Annotated[int, Field(ge=1, le=100_000)]
CountFigure = Annotated[Figure[Count], BeforeValidator(_as_figure, json_schema_input_type=Count | Figure[Count])]
PeerDomain = Literal["node"] | Annotated[int, Field(ge=2, le=1024)]


class DeviceEntry(Strict):
    """A GPU.

    Args:
        name: What it is called.
        vendor: Who makes it.
        architecture: Its generation.
        compute_capability: CUDA compute capability; left out for other vendors.
        num_compute_units: Streaming multiprocessors, or compute units.
        memory: Memory that a program sees, which is less than the name says.
        memory_bandwidth: Data sheet bandwidth of that memory.
        dense_flops: Tensor-core rate by format, without sparsity.
        peer_bandwidth: Link between GPUs, one direction, per GPU; left out without one.
        peer_domain: GPUs that the link joins in the product as sold: a number, or "node" for all GPUs of one node.
            Left out where there is no such link, or where it is an optional bridge.
        peer_topology: "switched", where any two GPUs have all of it between them, or "mesh", where each pair shares
            one link. A mesh's bandwidth is that of all links of a GPU to the rest of its domain.
        host_link: Kind of the link to the host.
        host_bandwidth: That link, one direction; known for PCIe, stated for c2c.
        tdp: Board power.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,62}$")]
    vendor: Literal["nvidia", "amd"]
    architecture: Architecture
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")] | None = None
    num_compute_units: CountFigure
    memory: SizeFigure
    memory_bandwidth: BandwidthFigure
    dense_flops: Annotated[dict[Format, FlopsFigure], Field(min_length=1)]
    peer_bandwidth: BandwidthFigure | None = None
    peer_domain: PeerDomain | None = None
    peer_topology: Literal["switched", "mesh"] = "switched"
    host_link: HostLink
    host_bandwidth: BandwidthFigure | None = None
    tdp: PowerFigure

    @model_validator(mode="after")
    def _check_links(self) -> Self:
        """Check that a link that is named has a bandwidth."""
        if self.host_link == "c2c" and self.host_bandwidth is None:
            fail("gpu", ("host_bandwidth",), "host_bandwidth is needed with host_link c2c: write for example 450GB/s")
        if self.peer_domain is not None and self.peer_bandwidth is None:
            fail("gpu", ("peer_bandwidth",), "peer_bandwidth is needed with peer_domain: write for example 450GB/s")
        return self

    @property
    def host_figure(self) -> Figure[BytesPerSecond]:
        """Return the link to the host: as stated, or the PCIe generation's own figure."""
        if self.host_bandwidth is not None:
            return self.host_bandwidth
        return Figure[BytesPerSecond].model_construct(
            value=PCIE_X16_BYTES_PER_SECOND[self.host_link],
            document=f"PCI Express {self.host_link.removeprefix('pcie')}.0, x16, one direction",
            note="",
        )

    def default_peer_domain(self, gpus_per_node: int) -> int:
        """Return how many GPUs the peer link joins when nothing else is said."""
        if self.peer_domain is None:
            return 1
        return gpus_per_node if self.peer_domain == "node" else self.peer_domain

    def to_device(self) -> Device:
        """Return the GPU as the cost model sees it."""
        figures: dict[str, Figure[int] | Figure[float]] = {
            "num_compute_units": self.num_compute_units,
            "memory_bytes": self.memory,
            "memory_bytes_per_second": self.memory_bandwidth,
            **{f"dense_flops_per_second.{name}": figure for name, figure in self.dense_flops.items()},
            "host_bytes_per_second": self.host_figure,
            "tdp_watts": self.tdp,
        }
        if self.peer_bandwidth is not None:
            figures["peer_bytes_per_second"] = self.peer_bandwidth
        return Device(
            name=self.name,
            vendor=self.vendor,
            architecture=self.architecture,
            compute_capability=self.compute_capability,
            num_compute_units=self.num_compute_units.value,
            memory_bytes=self.memory.value,
            memory_bytes_per_second=self.memory_bandwidth.value,
            dense_flops_per_second={name: figure.value for name, figure in self.dense_flops.items()},
            peer_bytes_per_second=None if self.peer_bandwidth is None else self.peer_bandwidth.value,
            peer_topology=PeerTopology(self.peer_topology),
            host_bytes_per_second=self.host_figure.value,
            host_link=self.host_link,
            tdp_watts=self.tdp.value,
            sources={name: figure.source for name, figure in figures.items()},
        )
