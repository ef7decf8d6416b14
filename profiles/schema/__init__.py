"""What users and the catalogue write about hardware, read by pydantic and handed on as frozen dataclasses."""

from profiles.schema.cluster import ClusterEntry, MixedClusterEntry
from profiles.schema.device import DeviceEntry

__all__ = ["ClusterEntry", "DeviceEntry", "MixedClusterEntry"]
