"""What the suite `copies` of a profile says of the drives of a node: how fast one file is written and read.

Files of one size each way are measured, so there is no start to tell from a rate. The rate of the largest one counts;
of several runs the last one's (`profiles.gates` does the same).
"""

from dataclasses import dataclass

from profiles.recorded import Recording

TO_DRIVE, FROM_DRIVE = "to_drive", "from_drive"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredDrives:
    """The drives of one node.

    Args:
        read_bytes_per_second: Read past the page cache.
        write_bytes_per_second: Written and synchronised.
    """

    read_bytes_per_second: float
    write_bytes_per_second: float


def measured_drives(recording: Recording) -> MeasuredDrives | None:
    """Return what a profile says of a node's drives, whatever its GPU; None where it lacks one way."""
    rates: dict[str, tuple[int, float]] = {}
    for entry in recording.measured:
        if entry.point.suite != "copies" or entry.point.word("direction") not in (TO_DRIVE, FROM_DRIVE):
            continue
        direction, num_bytes = entry.point.word("direction"), entry.point.size("bytes")
        if num_bytes >= rates.get(direction, (0, 0.0))[0]:
            rates[direction] = (num_bytes, num_bytes / float(str(entry.result["seconds"])))
    if {TO_DRIVE, FROM_DRIVE} - rates.keys():
        return None
    return MeasuredDrives(read_bytes_per_second=rates[FROM_DRIVE][1], write_bytes_per_second=rates[TO_DRIVE][1])
