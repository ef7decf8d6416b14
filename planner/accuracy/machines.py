"""The cluster that a row names: a GPU of the catalogue in the nodes of a preset; and its prices."""

import re
from dataclasses import replace
from functools import lru_cache

from profiles.catalogue import load_device, load_preset
from profiles.estimate import CostModel
from profiles.hardware import Cluster
from profiles.planned import cost_model_on
from profiles.schema.cluster import ClusterEntry
from profiles.software import Software

MOST_GPUS = 1_000_000
"""More than any cluster has."""

_MACHINES: tuple[tuple[str, str, str], ...] = (
    (r"polaris", "polaris", "a100-sxm-40gb"),
    (r"alps", "alps", "gh200-96gb"),
    (r"gb300(?!\d)", "gb300-nvl72", "gb300"),
    (r"gb200(?!\d)", "gb200-nvl72", "gb200"),
    (r"b300(?!\d)", "dgx-b200", "b300"),
    (r"b200(?!\d)", "dgx-b200", "b200"),
    (r"gh200(?!\d)", "dgx-h100", "gh200-96gb"),
    (r"h200(?!\d)", "dgx-h200", "h200"),
    (r"h800(?!\d)", "h800-8", "h800-sxm-80gb"),
    (r"h100.*(96|hbm2e)", "dgx-h100", "h100-sxm-96gb"),
    (r"h100.*nvl", "dgx-h100", "h100-nvl-94gb"),
    (r"h100.*pcie", "dgx-h100", "h100-pcie-80gb"),
    (r"h100(?!\d)", "dgx-h100", "h100-sxm-80gb"),
    (r"a800(?!\d)", "dgx-a100", "a800-sxm-80gb"),
    (r"a100.*pcie", "dgx-a100", "a100-pcie-80gb"),
    (r"a100.*40(?!\d)", "dgx-a100-40", "a100-sxm-40gb"),
    (r"a100(?!\d)", "dgx-a100", "a100-sxm-80gb"),
    (r"v100.*16(?!\d)", "dgx-a100", "v100-sxm-16gb"),
    (r"v100(?!\d)", "dgx-a100", "v100-sxm-32gb"),
    (r"mi355(?!\d)", "mi300x-8", "mi355x"),
    (r"mi325(?!\d)", "mi300x-8", "mi325x"),
    (r"mi300(?!\d)", "mi300x-8", "mi300x"),
    (r"mi250(?!\d)", "mi300x-8", "mi250x"),
    (r"l40s", "l40s-pcie-4", "l40s"),
    (r"rtx.?(pro)?.?6000(?!\d)", "l40s-pcie-4", "rtx-pro-6000"),
)
"""Pattern in a row's name of its hardware, the preset whose node is taken, the GPU in it; the first match counts."""


MOST_IN_NODE = 8
"""GPUs of the largest nodes that most GPUs are sold in."""


def cluster_named(name: str, num_gpus: int) -> tuple[Cluster, str | None]:
    """Return a cluster of at least `num_gpus` GPUs, and what was assumed of it.

    Raises:
        ValueError: No GPU of the catalogue has such a name, or no cluster so many.
    """
    if num_gpus > MOST_GPUS:
        raise ValueError(f"num_gpus = {num_gpus} are more than {MOST_GPUS:,}")
    text = name.lower()
    match = next((entry for entry in _MACHINES if re.search(entry[0], text)), None)
    if match is None:
        raise ValueError(f"hardware {name[:60]!r} is no GPU of the catalogue")
    _, preset, device = match
    cluster = _cluster(preset, device, num_gpus)
    exact = text.replace("_", "-").startswith(preset)
    return cluster, None if exact else f"network: {name} taken as {device} in nodes of {preset}"


def nodes_named(name: str, *, num_gpus: int, num_nodes: int) -> Cluster:
    """Return a cluster in which a collective of `num_gpus` GPUs fills `num_nodes` nodes.

    Where the preset's nodes hold another number of GPUs than that, so many of each take part, with their network cards.

    Raises:
        ValueError: No GPU of the catalogue has such a name, or none is sold in such nodes.
    """
    cluster, _ = cluster_named(name, num_gpus)
    per_node, left = divmod(num_gpus, num_nodes)
    if left or per_node == 0:
        raise ValueError(f"{num_gpus} GPUs cannot fill {num_nodes} nodes alike")
    if per_node == cluster.gpus_per_node or (num_nodes == 1 and num_gpus <= cluster.largest_inside):
        return cluster
    if per_node > max(MOST_IN_NODE, cluster.gpus_per_node):
        raise ValueError(f"{num_gpus} GPUs do not stand on {num_nodes} nodes of {cluster.gpus_per_node}")
    _, preset, device = next(entry for entry in _MACHINES if re.search(entry[0], name.lower()))
    return _resized(preset, device, per_node, num_nodes)


@lru_cache(maxsize=256)
def _resized(preset: str, device: str, per_node: int, num_nodes: int) -> Cluster:
    """Return nodes of a preset with another number of GPUs, each with as much network as before."""
    base = load_preset(preset)
    fields: dict[str, object] = {"preset": preset, "gpus_per_node": per_node, "nodes": num_nodes}
    if base.nics is not None:
        count = max(1, base.nics.count * per_node // base.gpus_per_node)
        fields["nics"] = {"count": count, "bandwidth": f"{base.nics.bandwidth / 1e9:g}GB/s"}
    if base.domain > 1:
        fields["nvlink_domain"] = per_node if base.domain <= base.gpus_per_node else base.domain
    cluster = ClusterEntry.model_validate(fields).to_cluster()
    return cluster if cluster.device.name == device else replace(cluster, device=load_device(device))


class CostModels:
    """Cost models of training, shared by rows that run on the same cluster and software."""

    def __init__(self) -> None:
        # Clusters are known by identity: rows that name the same one get the same object.
        self._found: dict[tuple[int, Software], CostModel] = {}

    def of(self, cluster: Cluster, software: Software) -> CostModel:
        """Return the cost model of a cluster and what runs on it."""
        found = self._found.get((id(cluster), software))
        if found is None:
            found = self._found[id(cluster), software] = cost_model_on(cluster, software)
        return found


@lru_cache(maxsize=256)
def _cluster(preset: str, device: str, num_gpus: int) -> Cluster:
    """Return enough nodes of a preset with another GPU in them, on the preset's own links where it has none such."""
    nodes = max(1, -(-num_gpus // load_preset(preset).gpus_per_node))
    try:
        return ClusterEntry.model_validate({"preset": preset, "gpu": device, "nodes": nodes}).to_cluster()
    except ValueError:
        cluster = ClusterEntry.model_validate({"preset": preset, "nodes": nodes}).to_cluster()
        return replace(cluster, device=load_device(device))
