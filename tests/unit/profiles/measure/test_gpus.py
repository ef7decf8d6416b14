"""Sockets as the kernel's files say them, who copies with whom, and which GPU is asked for its clocks."""

from pathlib import Path

import pytest

from profiles.measure.gpus import copying_ranks, named_gpu, socket_of

ADDRESS = "0000:1b:00.0"


def files(root: Path, *, node: str, cpulist: str, package: str) -> Path:
    for path, text in (
        (f"bus/pci/devices/{ADDRESS}/numa_node", node),
        ("devices/system/node/node2/cpulist", cpulist),
        ("devices/system/cpu/cpu48/topology/physical_package_id", package),
    ):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize("cpulist", ["48-71,144-167", "48,50,52", "48"])
def test_a_numa_node_stands_for_the_socket_of_its_first_cpu(tmp_path: Path, cpulist: str) -> None:
    assert socket_of(ADDRESS, files=files(tmp_path, node="2", cpulist=cpulist, package="1")) == 1


@pytest.mark.parametrize(("node", "cpulist"), [("-1", "48"), ("3", "48"), ("2", ""), ("?", "48")])
def test_what_the_system_does_not_say_is_not_known(tmp_path: Path, node: str, cpulist: str) -> None:
    assert socket_of(ADDRESS, files=files(tmp_path, node=node, cpulist=cpulist, package="1")) is None
    assert socket_of("0000:ff:00.0", files=tmp_path) is None


def test_who_copies_at_once() -> None:
    sockets = [0, 0, 1, 1, 0, 0, 1, 1]
    assert copying_ranks(sockets, per_node=4, beside="alone") == (0,)
    assert copying_ranks(sockets, per_node=4, beside="socket") == (0, 1)
    assert copying_ranks(sockets, per_node=4, beside="concurrent") == tuple(range(8))
    # The first GPU's socket need not be the first one.
    assert copying_ranks([1, 0, 1, 0], per_node=4, beside="socket") == (0, 2)


@pytest.mark.parametrize(
    ("sockets", "message"),
    [
        ([0, None], "the system does not say on which socket GPUs hang"),
        ([0, 0], "all GPUs of the node hang on one socket: copies of all of them are its copies"),
    ],
)
def test_a_socket_that_is_no_case_of_its_own_is_named(sockets: list[int | None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        copying_ranks(sockets, per_node=2, beside="socket")


OWN = "GPU-8d5a2f1c-0000-1111-2222-333344445555"


@pytest.mark.parametrize(
    ("index", "address", "visible", "named"),
    [
        (1, ADDRESS, "7,6", ADDRESS),  # numbers may be in another order than nvidia-smi's
        (1, None, None, "1"),
        (1, None, "3, 5", "5"),
        (0, None, f"{OWN},GPU-other", OWN),
        (0, None, f"MIG-{OWN}/3/0", OWN),
        (0, None, "MIG-0a1b2c3d-4444-5555-6666-777788889999", None),
        (2, None, "3,5", None),
        (0, None, "", None),
    ],
)
def test_a_gpu_is_asked_by_what_names_it(index: int, address: str | None, visible: str | None, named: str) -> None:
    assert named_gpu(index, address=address, visible=visible) == named
