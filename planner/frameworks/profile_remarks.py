"""What to beware of in the measurements that price a cluster, as plans say it: faults, and what prices nothing."""

from planner.frameworks.overheads import FRAGMENTATION_FRACTION
from profiles.hardware import Cluster
from profiles.uses import Use


def profile_remarks(cluster: Cluster, *, use: Use, launch_seconds: float) -> tuple[str, ...]:
    """Return what plans say of a cluster's profile; nothing without one.

    Args:
        cluster: The cluster.
        use: What is planned.
        launch_seconds: By which plans are priced without the profile: of training the host's time for a launch, of an
            engine what each small kernel takes in its graphs.
    """
    if cluster.profile is None:
        return ()
    # SciPy, which interpolates between measured rows, is loaded only where there are some.
    from profiles.profiled import remarks  # noqa: PLC0415
    from profiles.recorded import recording_of  # noqa: PLC0415
    from profiles.unused import unused  # noqa: PLC0415

    recording = recording_of(cluster.profile)
    left = unused(recording, cluster, launch_seconds=launch_seconds, lost_fraction=FRAGMENTATION_FRACTION, use=use)
    return tuple(f"profile: {text}" for text in (*remarks(recording, cluster), *left))
