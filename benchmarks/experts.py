"""Place experts by drawn histograms, beside the two-level greedy that serving engines run online.

    python -m benchmarks.experts
    python -m benchmarks.experts --only 58x256-32 --format json
    python -m benchmarks.experts --only 58x256-32 --front zipf:1.0

Each case is a shape (layers x experts, GPUs, slots), a distribution, and whether the experts of a group stay within a
node. Loads are those of the heaviest GPU over the mean, on the mean over layers; sends are those of
`planner.experts.traffic` for a router like DeepSeek-V3's (8 experts of 4 of 8 groups), whichever the placement. The
exit code is 1 where a placement is worse than the greedy's, holds an expert twice on a GPU, or takes more than
`MOST_SECONDS` of processor time for all layers of a case. `--front` shows the front of load and traffic of a shape.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.two_level_greedy import two_level_greedy
from planner.experts.assumed import assumed_histogram
from planner.experts.decide import balanced
from planner.experts.front import candidates, front
from planner.experts.histogram import Ints, RoutingHistogram
from planner.experts.placement import scored
from planner.experts.request import ExpertRequest
from planner.experts.traffic import RouterShape

MOST_SECONDS = 5.0
SEED = 0
ROUTER = RouterShape(experts_per_token=8, num_groups=8, groups_per_token=4)
DISTRIBUTIONS = ("zipf:0.5", "zipf:1.0", "lognormal:0.5", "lognormal:1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Layers, experts and where they stand.

    Args:
        layers: Layers.
        experts: Experts of each.
        gpus: GPUs, eight to a node.
        slots: Slots of all GPUs.
    """

    layers: int
    experts: int
    gpus: int
    slots: int

    @property
    def name(self) -> str:
        """Return "58x256-32"."""
        return f"{self.layers}x{self.experts}-{self.gpus}"


SHAPES = (
    Shape(layers=58, experts=256, gpus=16, slots=288),
    Shape(layers=58, experts=256, gpus=32, slots=288),
    Shape(layers=58, experts=256, gpus=64, slots=320),
    Shape(layers=94, experts=128, gpus=16, slots=144),
    Shape(layers=94, experts=128, gpus=32, slots=160),
    Shape(layers=94, experts=128, gpus=64, slots=192),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case.

    Args:
        shape: Name of the shape.
        slots: Slots of all GPUs.
        distribution: What the histogram is drawn from.
        keep_groups: Groups stay within a node.
        load: Heaviest GPU over the mean, as placed.
        bound: What it is at least.
        greedy_load: The greedy's.
        sends: Other nodes that a token is sent to, as placed.
        greedy_sends: The greedy's.
        twice: GPUs that hold an expert twice, as placed.
        greedy_twice: The greedy's, as a share of all.
        cpu_seconds: Processor time of the placement of all layers.
    """

    shape: str
    slots: int
    distribution: str
    keep_groups: bool
    load: float
    bound: float
    greedy_load: float
    sends: float
    greedy_sends: float
    twice: int
    greedy_twice: float
    cpu_seconds: float

    @property
    def is_worse(self) -> bool:
        """Return whether the placement is not what it should be."""
        return self.load > self.greedy_load * (1 + 1e-9) or self.twice > 0 or self.cpu_seconds > MOST_SECONDS


def measure(shape: Shape, distribution: str, *, keep_groups: bool, layers: int | None = None) -> Row:
    """Return one case, measured; with fewer layers than the shape has where `layers` says so."""
    histogram = assumed_histogram(distribution, num_layers=layers or shape.layers, num_experts=shape.experts, seed=SEED)
    request = ExpertRequest(
        num_gpus=shape.gpus,
        gpus_per_node=8,
        redundant=shape.slots - shape.experts,
        router=ROUTER,
        keep_groups=keep_groups,
    )
    began = time.process_time()
    placed = balanced(histogram, request, shape.slots // shape.gpus)
    seconds = time.process_time() - began
    greedy = greedy_placement(histogram, request, shape.slots)
    beside = scored(histogram, request, greedy)
    assert placed.mean_sends is not None
    assert beside.mean_sends is not None
    return Row(
        shape=shape.name,
        slots=shape.slots,
        distribution=distribution,
        keep_groups=keep_groups,
        load=placed.mean_imbalance,
        bound=placed.mean_bound,
        greedy_load=beside.mean_imbalance,
        sends=placed.mean_sends,
        greedy_sends=beside.mean_sends,
        twice=_gpus_with_twice(placed.expert_LGS),
        greedy_twice=_gpus_with_twice(greedy) / (len(greedy) * shape.gpus),
        cpu_seconds=seconds,
    )


def greedy_placement(histogram: RoutingHistogram, request: ExpertRequest, num_slots: int) -> Ints:
    """Return where the two-level greedy puts the experts."""
    kept = request.keep_groups
    return np.array(
        [
            two_level_greedy(
                weights,
                num_slots=num_slots,
                num_groups=request.num_groups if kept else 1,
                num_nodes=request.num_nodes if kept else 1,
                num_gpus=request.num_gpus,
            )
            for weights in histogram.tokens_LE.tolist()
        ]
    )


def _gpus_with_twice(expert_LGS: Ints) -> int:
    """Return how many GPUs of all layers hold some expert more than once."""
    return sum(len(set(experts)) < len(experts) for layer in expert_LGS.tolist() for experts in layer)


HEADER = (
    f"{'case':>10} {'slots':>5} {'distribution':>13} {'groups':>6} {'load':>6} {'bound':>6} {'greedy':>6} "
    f"{'sends':>5} {'greedy':>6} {'twice':>6} {'CPU s':>5}"
)


def line_of(row: Row) -> str:
    """Return one row of the table."""
    return (
        f"{row.shape:>10} {row.slots:>5} {row.distribution:>13} {'kept' if row.keep_groups else 'free':>6} "
        f"{row.load:>6.3f} {row.bound:>6.3f} {row.greedy_load:>6.3f} {row.sends:>5.2f} {row.greedy_sends:>6.2f} "
        f"{row.greedy_twice:>6.1%} {row.cpu_seconds:>5.2f}"
    )


def front_lines(shape: Shape, distribution: str, layers: int | None = None) -> tuple[str, ...]:
    """Return the front of load and traffic of a shape, and the processor time of it."""
    histogram = assumed_histogram(distribution, num_layers=layers or shape.layers, num_experts=shape.experts, seed=SEED)
    request = ExpertRequest(num_gpus=shape.gpus, gpus_per_node=8, redundant=shape.slots - shape.experts, router=ROUTER)
    began = time.process_time()
    points = front(histogram, request, candidates(histogram, request, shape.slots // shape.gpus))
    seconds = time.process_time() - began
    return (
        f"{'weight':>6} {'load':>6} {'sends':>6}",
        *(
            f"{point.weight:>6g} {point.placement.mean_imbalance:>6.3f} {point.placement.mean_sends or 0.0:>6.3f}"
            for point in points
        ),
        f"{shape.name} {distribution}, {seconds:.1f} s of processor time",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the cases and print them; return 1 where one is not what it should be."""
    parser = argparse.ArgumentParser(description="Place experts beside the two-level greedy.")
    parser.add_argument("--only", help="one shape, 58x256-32", choices=[shape.name for shape in SHAPES])
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument("--front", help="of one shape, the front of load and traffic", choices=DISTRIBUTIONS)
    asked = parser.parse_args(arguments)
    if asked.front:
        shape = next((shape for shape in SHAPES if shape.name == asked.only), SHAPES[0])
        print("\n".join(front_lines(shape, asked.front)))
        return 0
    rows = []
    if asked.format == "text":
        print(HEADER)
    for shape in SHAPES:
        if asked.only not in {None, shape.name}:
            continue
        for distribution in DISTRIBUTIONS:
            for keep_groups in (True, False):
                rows.append(measure(shape, distribution, keep_groups=keep_groups))
                if asked.format == "text":
                    print(line_of(rows[-1]), flush=True)
    if asked.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    return int(any(row.is_worse for row in rows))


if __name__ == "__main__":
    sys.exit(main())
