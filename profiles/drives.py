"""What the drives of a node take: at the rates of a profile, or at those that the cluster is said to have.

A profile's file was written and synchronised, or read past the page cache, by one process. Whichever figures count, the
GPUs of a node share them evenly, and what is said of reading stands for writing where nothing is said of that.
"""

from dataclasses import dataclass

from profiles.errors import CoverageError
from profiles.estimate import Estimate, Source
from profiles.hardware import Cluster
from profiles.measured_drives import measured_drives
from profiles.ops import DriveCopy
from profiles.recorded import recording_of

READ_SOURCE = "the cluster's figure for reading; assumption: drives write as fast as they read"
SAID_SOURCE = "the cluster's figures"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriveRates:
    """The drives of one node, all together.

    Args:
        read_bytes_per_second: What reading reaches.
        write_bytes_per_second: What writing reaches.
        note: Where the two come from.
        source: How far they are known.
    """

    read_bytes_per_second: float
    write_bytes_per_second: float
    note: str
    source: Source


def drive_rates(cluster: Cluster) -> DriveRates | None:
    """Return the rates of a node's drives; None where neither the cluster nor its profile says them.

    Raises:
        ProfileFileError: The profile of the cluster is gone, or has changed.
    """
    recording = None if cluster.profile is None else recording_of(cluster.profile)
    found = None if recording is None else measured_drives(recording)
    if recording is not None and found is not None:
        return DriveRates(
            read_bytes_per_second=found.read_bytes_per_second,
            write_bytes_per_second=found.write_bytes_per_second,
            note=f"measured: one file, written and synchronised, and read past the page cache ({recording.directory});"
            " assumption: it lay on what the plan puts there",
            source=Source.MEASURED,
        )
    said, written = cluster.nvme_bytes_per_second, cluster.nvme_write_bytes_per_second
    if not said:
        return None
    return DriveRates(
        read_bytes_per_second=said,
        write_bytes_per_second=written or said,
        note=SAID_SOURCE if written else READ_SOURCE,
        source=Source.ASSUMED,
    )


def has_drives(cluster: Cluster) -> bool:
    """Return whether it is known how much the drives of a node hold, and how fast they are."""
    return cluster.nvme_bytes is not None and drive_rates(cluster) is not None


def drive_copy(operation: DriveCopy, cluster: Cluster) -> Estimate:
    """Return the time of a copy to or from the drives of a node, which its GPUs share evenly.

    Raises:
        CoverageError: Nothing says how fast they are.
    """
    rates = drive_rates(cluster)
    if rates is None:
        raise CoverageError(
            operation="copies to drives",
            missing="neither the cluster nor a profile says how fast its drives are",
            remedy="Give cluster.nvme.bandwidth, or run `shardwright profile run` with the suite copies.",
        )
    of_node = rates.write_bytes_per_second if operation.written else rates.read_bytes_per_second
    way = "written" if operation.written else "read"
    return Estimate(
        seconds=operation.num_bytes * cluster.gpus_per_node / of_node,
        source=rates.source,
        note=f"drives {way}, shared by {cluster.gpus_per_node}: {rates.note}",
    )
