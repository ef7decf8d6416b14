"""Logs as the versions of nccl-tests and rccl-tests print them, with figures made up here: one rate for every size."""

from collections.abc import Callable

GATHERS = ("all_gather", "reduce_scatter", "alltoall")
REDUCTIONS = ("all_reduce", "reduce_scatter", "sendrecv")
NEW_HEADER = "#       size         count      type   redop    root " + 2 * "    time   algbw   busbw #wrong "
OLD_HEADER = (
    "#       size         count      type   redop     time   algbw   busbw  error     time   algbw   busbw  error"
)


def microseconds(num_bytes: int) -> float:
    """Return the time that the logs give a size: 20 us and 200 GB/s."""
    return round(20 + num_bytes / 200e3, 2)


def bus_factor(name: str, ranks: int) -> float:
    if name == "sendrecv":
        return 1.0
    return (ranks - 1) / ranks * (2 if name == "all_reduce" else 1)


def row(name: str, num_bytes: int, ranks: int, *, old: bool = False, wrong: str = "0") -> str:
    """Return one row, in place as fast as out of place."""
    time = microseconds(num_bytes)
    algbw = num_bytes / time / 1e3
    count = num_bytes // 4 // (ranks if name in GATHERS else 1)
    figures = f"{time:9.2f} {algbw:7.2f} {algbw * bus_factor(name, ranks):7.2f}"
    redop = "sum" if name in REDUCTIONS else "" if old else "none"
    head = f"{num_bytes:12d} {count:13d}     float {redop:>7}" + ("" if old else "      -1")
    wrong = "0e+00" if old else wrong
    return f"{head} {figures} {wrong:>6} {figures} {wrong:>6}"


def ranks_of(hosts: int, per_host: int, device: str, *, group: Callable[[int], int] | None, bus: str = "0x1b") -> str:
    lines = []
    for rank in range(hosts * per_host):
        in_group = "" if group is None else f"Group {group(rank):2d} "
        host, local = f"node{rank // per_host}", rank % per_host
        lines.append(
            f"#  Rank {rank:2d} {in_group}Pid {1000 + rank:6d} on {host:>10} device {local:2d} [{bus}] {device}"
        )
    return "\n".join(lines)


def nvidia_log(
    name: str = "all_reduce",
    sizes: tuple[int, ...] = (1 << 20, 1 << 26),
    *,
    hosts: int = 1,
    per_host: int = 8,
    group: Callable[[int], int] = lambda _: 0,
    graph: int = 0,
) -> str:
    """Return what nccl-tests 2.18 prints."""
    size = sum(group(rank) == group(0) for rank in range(hosts * per_host))
    rows = "\n".join(row(name, num_bytes, size) for num_bytes in sizes)
    return f"""# nccl-tests version 2.18.3 nccl-headers=23003 nccl-library=23003
# Collective test starting: {name}_perf
# nThread 1 nGpus 8 minBytes 8 maxBytes 67108864 step: 2(factor) iters: 20 validation: 1 graph: {graph} unalign: 0
#
# Using devices
{ranks_of(hosts, per_host, "NVIDIA H100 80GB HBM3", group=group, bus="0000:1b:00")}
#
#                                                              out-of-place                       in-place
{NEW_HEADER}
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
{rows}
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 100.0
#
"""


def efa_log(name: str = "all_gather", sizes: tuple[int, ...] = (1 << 20, 1 << 26)) -> str:
    """Return what nccl-tests 2.13 prints under Open MPI on nodes with EFA: tags and other programs' lines between."""
    body = nvidia_log(name, sizes, hosts=2).splitlines()[2:]
    noise = [
        "ip-10-0-1-5:4711:4720 [0] NCCL INFO NET/OFI Initializing aws-ofi-nccl 1.7.4-aws",
        "ip-10-0-1-5:4711:4720 [0] NCCL INFO NET/OFI Selected Provider is efa (found 4 nics)",
        "NCCL version 2.18.5+cuda12.2",
    ]
    lines = [
        *body[:3],
        *noise,
        *body[3:-4],
        "ip-10-0-1-5:4711:4720 [0] NCCL INFO comm 0x5581 rank 0 nranks 16",
        *body[-4:],
    ]
    command = f"+ mpirun -N 8 --tag-output /opt/nccl-tests/build/{name}_perf -b 8 -e 2G -f 2 -g 1"
    return "\n".join([command, *(f"[1,0]<stdout>:{line}" for line in lines)]) + "\n"


def rccl_log(name: str = "all_reduce", sizes: tuple[int, ...] = (1 << 20, 1 << 26)) -> str:
    """Return what rccl-tests prints."""
    lines = nvidia_log(name, sizes).splitlines()[2:]
    text = "\n".join([lines[0], "#", "rccl-tests: Version develop:83d38d9", *lines[2:]])
    return text.replace("NVIDIA H100 80GB HBM3", "AMD Instinct MI300X").replace("0000:1b:00", "0000:05:00")


def old_log(name: str = "all_gather", sizes: tuple[int, ...] = (1 << 20, 1 << 26)) -> str:
    """Return what nccl-tests 2.0 to 2.10 print: no name, no groups, no root, of a gather no operation."""
    rows = "\n".join(row(name, num_bytes, 4, old=True) for num_bytes in sizes)
    return f"""# nThread 1 nGpus 4 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5 iters: 20 validation: 1
#
# Using devices
{ranks_of(1, 4, "A100-SXM4-80GB", group=None)}
#
#                                                       out-of-place                       in-place
{OLD_HEADER}
#        (B)    (elements)                       (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
{rows}
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 9.5
#
"""
