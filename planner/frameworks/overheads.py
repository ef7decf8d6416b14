"""What a GPU holds beside tensors: context, communicators, and what the caching allocator loses.

Published figures stand in until a cluster's profile has measured them on its own GPU (suite `memory`) or a snapshot of
a real run has shown them (`planner.calibration`). Of the allocator a profile measures how it rounds fresh tensors. A
run loses that and what its order of tensors leaves between them, which only a snapshot of one shows, so that rounding
bounds what is lost from below.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

from planner.units import MIB
from profiles.hardware import Cluster, MemoryCalibration, ProfileReference

CONTEXT_BYTES = 604 * MIB
CONTEXT_SOURCE = "CUDA context and loaded kernels; no published figure"
PAIR_COMMUNICATOR_BYTES = 544 * MIB
GROUP_COMMUNICATOR_BYTES = 688 * MIB
COMMUNICATOR_SOURCE = "544 MiB for a pair, 688 MiB for a larger group (measured on A100, NVIDIA/nccl issue 964)"
# SimuMax prints reserved beside allocated memory of nine Megatron-LM runs on B200. The difference over the ledger's
# activations and temporaries is 12 to 47 %, and 21 % of the nine together.
FRAGMENTATION_FRACTION = 0.12
FRAGMENTATION_SOURCE = (
    "12 % of activations and temporaries lost to the caching allocator, the least of nine published Megatron-LM runs"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overheads:
    """What a GPU holds beside tensors.

    Args:
        context_bytes: Of a process and the libraries that it loads.
        context_source: Where that comes from.
        pair_communicator_bytes: Of a communicator between two ranks.
        group_communicator_bytes: Of a larger one.
        communicator_source: Where both come from.
        lost_fraction: What the allocator loses, as a part of activations and temporaries.
        lost_source: Where that comes from.
        fixed_bytes: What a real run held beside the ledger's permanent terms; 0 without one.
        fixed_source: Where that comes from.
        assumed: Those of the sources that are no measurement on this GPU.
    """

    context_bytes: int
    context_source: str
    pair_communicator_bytes: int
    group_communicator_bytes: int
    communicator_source: str
    lost_fraction: float
    lost_source: str
    fixed_bytes: int
    fixed_source: str
    assumed: frozenset[str]

    def communicator_bytes(self, size: int) -> int:
        """Return the memory of one communicator; one of a single rank takes none."""
        return 0 if size < 2 else self.pair_communicator_bytes if size == 2 else self.group_communicator_bytes


PUBLISHED = Overheads(
    context_bytes=CONTEXT_BYTES,
    context_source=CONTEXT_SOURCE,
    pair_communicator_bytes=PAIR_COMMUNICATOR_BYTES,
    group_communicator_bytes=GROUP_COMMUNICATOR_BYTES,
    communicator_source=COMMUNICATOR_SOURCE,
    lost_fraction=FRAGMENTATION_FRACTION,
    lost_source=FRAGMENTATION_SOURCE,
    fixed_bytes=0,
    fixed_source="",
    assumed=frozenset({CONTEXT_SOURCE, COMMUNICATOR_SOURCE, FRAGMENTATION_SOURCE}),
)
"""What is taken where nothing was measured."""


def overheads_on(cluster: Cluster) -> Overheads:
    """Return what GPUs of a cluster hold beside tensors, by its profile and its calibration where it has them.

    Raises:
        profiles.errors.ProfileFileError: The profile cannot be read, or has changed.
    """
    found = PUBLISHED if cluster.profile is None else _measured(cluster)
    shown = None if cluster.calibration is None else cluster.calibration.memory
    if shown is None:
        return found
    assert cluster.calibration is not None, "what it shows was just read"
    return _calibrated(found, shown, cluster.calibration.source)


def _measured(cluster: Cluster) -> Overheads:
    """Return the published figures with those of a profile in their places."""
    assert cluster.profile is not None, "only a cluster with a profile is asked"
    names = tuple(device.name for device, _ in cluster.device_counts)
    return _measured_by(cluster.profile, names, cluster.least_memory_bytes)


@lru_cache(maxsize=32)
def _measured_by(profile: ProfileReference, devices: tuple[str, ...], least_memory_bytes: int) -> Overheads:
    from profiles.measured_memory import measured_memory  # noqa: PLC0415 - needed with a profile alone
    from profiles.recorded import recording_of  # noqa: PLC0415

    recording = recording_of(profile)
    held = measured_memory(recording, devices=devices, least_memory_bytes=least_memory_bytes)
    found, name = PUBLISHED, f"{recording.device}, {recording.directory}"
    if held.context_bytes is not None:
        source = f"measured: a process that has run one product, {name}"
        found = replace(found, context_bytes=held.context_bytes, context_source=source)
    pair, group = held.pair_communicator_bytes, held.group_communicator_bytes
    if pair is not None or group is not None:
        told = [
            _told(pair, PAIR_COMMUNICATOR_BYTES, "a pair"),
            _told(group, GROUP_COMMUNICATOR_BYTES, "a larger group"),
        ]
        found = replace(
            found,
            pair_communicator_bytes=PAIR_COMMUNICATOR_BYTES if pair is None else pair,
            group_communicator_bytes=GROUP_COMMUNICATOR_BYTES if group is None else group,
            communicator_source=f"{'; '.join(told)} ({name})",
        )
    rounded = held.rounded_fraction
    if rounded is not None and rounded > FRAGMENTATION_FRACTION:
        source = (
            f"measured: {100 * rounded:.3g} % of fresh tensors lost to the caching allocator's rounding, {name}; a run"
            " loses no less of its activations and temporaries"
        )
        found = replace(
            found, lost_fraction=rounded, lost_source=source, assumed=found.assumed - {FRAGMENTATION_SOURCE}
        )
    assumed = found.assumed - {CONTEXT_SOURCE, COMMUNICATOR_SOURCE}
    if held.context_bytes is None:
        assumed |= {found.context_source}
    if pair is None or group is None:
        assumed |= {found.communicator_source}
    return replace(found, assumed=assumed)


def _told(measured: int | None, published: int, what: str) -> str:
    if measured is None:
        return f"{published / MIB:,.0f} MiB for {what} (not measured there: on A100, NVIDIA/nccl issue 964)"
    return f"{measured / MIB:,.0f} MiB for {what}, measured"


def _calibrated(found: Overheads, shown: MemoryCalibration, source: str) -> Overheads:
    told = f"calibrated by {source}"
    return replace(
        found,
        lost_fraction=shown.lost_fraction,
        lost_source=f"{100 * shown.lost_fraction:.3g} % of activations and temporaries, {told}",
        fixed_bytes=shown.fixed_bytes,
        fixed_source=told,
        assumed=found.assumed - {found.lost_source},
    )
