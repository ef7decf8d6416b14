"""A cluster with the profile that a user names, once it is known to fit."""

from dataclasses import replace
from pathlib import Path

from planner.errors import InputError, Location
from profiles.hardware import Cluster

MOST_NAMED = 5


def measured_cluster(cluster: Cluster, directory: Path, *, strict: bool) -> Cluster:
    """Return a cluster that is priced by a profile.

    Args:
        cluster: The cluster.
        directory: The profile.
        strict: It must be of this hardware, of one state of the software, and without rows that the gates leave out.

    Raises:
        InputError: It is not, and that is asked for.
        profiles.errors.ProfileFileError: It cannot be read.
    """
    from profiles.judging import judge
    from profiles.profiled import remarks
    from profiles.recorded import read_recording, recording_of

    recording = read_recording(directory)
    measured = replace(cluster, profile=recording.reference)
    recording_of(recording.reference)
    if not strict:
        return measured
    found = [*remarks(recording, cluster)]
    found += [f"line {entry.row.line}: {entry.fault}: {entry.reason}" for entry in judge(recording).excluded]
    if found:
        more = len(found) - MOST_NAMED
        told = [*found[:MOST_NAMED], *([f"and {more} more"] if more > 0 else [])]
        raise InputError(
            f"The profile is refused by --strict-data: {'; '.join(told)}.",
            location=Location(file=str(directory), path="--profile"),
            hint="Measure again with `shardwright profile run`, or plan without --strict-data.",
        )
    return measured
