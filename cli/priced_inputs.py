"""Inputs whose cluster is priced by what the user says: a profile, a calibration."""

from dataclasses import replace
from pathlib import Path

from planner.errors import InputError
from planner.inputs.load import Inputs
from profiles.hardware import Cluster


def priced_by(
    inputs: Inputs, *, profile: Path | None = None, strict_data: bool = False, calibration: Path | None = None
) -> Inputs:
    """Return inputs whose cluster is priced by a profile, a calibration, both or neither.

    Raises:
        InputError: One of them does not fit.
        profiles.errors.ProfileFileError: The profile cannot be read.
    """
    (cluster,) = clusters_priced_by((inputs.cluster,), profile=profile, strict_data=strict_data)
    if calibration is not None:
        from planner.schema.calibration import read_calibration

        cluster = replace(cluster, calibration=read_calibration(calibration, cluster))
    return replace(inputs, cluster=cluster)


def clusters_priced_by(
    clusters: tuple[Cluster, ...], *, profile: Path | None, strict_data: bool
) -> tuple[Cluster, ...]:
    """Return clusters that are priced by a profile; themselves without one.

    Raises:
        InputError: It does not fit.
        profiles.errors.ProfileFileError: It cannot be read.
    """
    if profile is not None:
        from cli.profiled_cluster import measured_cluster

        return tuple(measured_cluster(cluster, profile, strict=strict_data) for cluster in clusters)
    if strict_data:
        raise InputError("--strict-data is about the data of --profile, which is missing.", hint="Give --profile DIR.")
    return clusters
