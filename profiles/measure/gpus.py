"""Which GPU a process has, as `nvidia-smi` names it, on which socket it hangs, and which ranks share that.

A device's `numa_node` names a NUMA node, whose first CPU names the socket (`physical_package_id`): a socket may have
several NUMA nodes (Linux, Documentation/ABI/testing/sysfs-bus-pci and sysfs-devices-system-cpu).
"""

from collections.abc import Sequence
from pathlib import Path

SYS = Path("/sys")


def socket_of(address: str, *, files: Path = SYS) -> int | None:
    """Return the socket of a PCI device, given as "0000:1b:00.0"; None where the system does not say it."""
    node = _number(files / "bus/pci/devices" / address / "numa_node")
    if node is None or node < 0:
        return None
    listed = _text(files / f"devices/system/node/node{node}/cpulist")
    first = listed.replace("-", ",").partition(",")[0]
    if not first.isdecimal():
        return None
    return _number(files / f"devices/system/cpu/cpu{first}/topology/physical_package_id")


def _text(path: Path) -> str:
    """Return a file's line; empty where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.lstrip("-").isdecimal() else None


def copying_ranks(sockets: Sequence[int | None], *, per_node: int, beside: str) -> tuple[int, ...]:
    """Return which ranks copy at once.

    Args:
        sockets: The socket of each rank's GPU.
        per_node: Ranks of a node.
        beside: "alone": the first; "socket": those of its node and socket; "concurrent": all.

    Raises:
        ValueError: "socket" is no case of its own: the system does not say the sockets, or the node has one.
    """
    if beside == "alone":
        return (0,)
    if beside == "concurrent":
        return tuple(range(len(sockets)))
    first = sockets[:per_node]
    if None in first:
        raise ValueError("the system does not say on which socket GPUs hang")
    if len(set(first)) == 1:
        raise ValueError("all GPUs of the node hang on one socket: copies of all of them are its copies")
    return tuple(rank for rank, socket in enumerate(first) if socket == first[0])


def named_gpu(index: int, *, address: str | None, visible: str | None) -> str | None:
    """Return a GPU as nvidia-smi takes it; None where that cannot be told.

    Args:
        index: Its number among those that this process sees.
        address: Where it hangs, by torch: that names it whatever is visible, in whatever order, and in parts (MIG).
        visible: `CUDA_VISIBLE_DEVICES`; None where it is not set.
    """
    if address is not None:
        return address
    if visible is None:
        return str(index)
    listed = [part.strip() for part in visible.split(",")]
    if index >= len(listed):
        return None
    chosen = listed[index]
    # A part of a GPU says of which by its old name, MIG-GPU-<UUID>/<instance>/<compute instance>, by its new one not.
    if chosen.startswith("MIG-GPU-"):
        return chosen.removeprefix("MIG-").partition("/")[0]
    return chosen if chosen.isdecimal() or chosen.startswith("GPU-") else None
