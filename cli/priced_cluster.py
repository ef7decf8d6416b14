"""A cluster with what the user says that it is priced by: a profile, a calibration."""

from dataclasses import replace
from pathlib import Path

from planner.errors import InputError
from profiles.hardware import Cluster


def priced_cluster(cluster: Cluster, *, profile: Path | None, strict_data: bool, calibration: Path | None) -> Cluster:
    """Return a cluster that is priced by a profile, a calibration, both or neither.

    Raises:
        InputError: One of them does not fit.
        profiles.errors.ProfileFileError: The profile cannot be read.
    """
    if profile is not None:
        from cli.profiled_cluster import measured_cluster

        cluster = measured_cluster(cluster, profile, strict=strict_data)
    elif strict_data:
        raise InputError("--strict-data is about the data of --profile, which is missing.", hint="Give --profile DIR.")
    if calibration is None:
        return cluster
    from planner.schema.calibration import read_calibration

    return replace(cluster, calibration=read_calibration(calibration, cluster))
