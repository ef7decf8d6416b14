"""Offloaded inference of OPT under FlexGen's published cost formulas, beside the wanted throughput and our own price.

    python -m benchmarks.offload
    python -m benchmarks.offload --only opt-30b --format json

Each case is a spec of `offload_specs`: prompts of 512 and answers of 32 tokens, a drive of 1.5 TB. Under FlexGen's
formulas and constants (`planner.inference_offload.flexgen`) the best block is searched as for a user; "most" is what no
block of the batch sizes looked at exceeds. "own" is the best plan under shardwright's own prices on the same memories,
with FlexGen's figures for the drive and for what the CPU's attention reads (its flops a second are bytes a second,
because each byte of a cache takes one), and "bound" what no plan exceeds under them. The exit code is 1 where a case is
below what is wanted, in the two decimals in which those figures are known.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from planner.inference_offload.blocks import best_block
from planner.inference_offload.decide import plan_offload
from planner.inference_offload.flexgen import GB, FlexGenBlock, FlexGenHardware, FlexGenModel, flexgen_problem
from planner.inference_offload.request import OffloadRequest, Target
from planner.models.blocks import DenseFeedForward, SelfAttention
from planner.models.specs import ModelSpec
from planner.serving_search.inputs import ServeInputs, load_serve_inputs

SPECS = Path(__file__).parent / "offload_specs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case.

    Args:
        model: Name of its spec.
        gpu: Memory of the GPU, in FlexGen's GB.
        host: Memory of the host.
        wanted: Generated tokens a second.
    """

    model: str
    gpu: int
    host: int
    wanted: float


CASES = (
    Case(model="opt-30b", gpu=16, host=200, wanted=7.09),
    Case(model="opt-175b", gpu=16, host=200, wanted=0.17),
    Case(model="opt-66b", gpu=80, host=256, wanted=3.65),
)
DRIVE = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One case, measured.

    Args:
        model: The model.
        wanted: Generated tokens a second that are wanted.
        flexgen: Those of the best block under FlexGen's formulas.
        most: What no block exceeds under them.
        block: Batches and their size.
        cpu_seconds: Processor time of that search.
        own: Tokens a second of the best plan under shardwright's prices.
        bound: What no plan exceeds under them.
    """

    model: str
    wanted: float
    flexgen: float
    most: float
    block: str
    cpu_seconds: float
    own: float
    bound: float

    @property
    def is_worse(self) -> bool:
        """Return whether less is reached than is wanted."""
        return round(self.flexgen, 2) < self.wanted


def flexgen_model(model: ModelSpec) -> FlexGenModel:
    """Return a model like OPT in FlexGen's words."""
    (block,) = model.distinct_blocks
    assert isinstance(block.mixer, SelfAttention)
    assert isinstance(block.feed_forward, DenseFeedForward)
    return FlexGenModel(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=block.feed_forward.intermediate_size,
        num_heads=block.mixer.num_attention_heads,
    )


def measure(case: Case) -> Row:
    """Return one case, measured."""
    inputs = load_serve_inputs(SPECS / f"{case.model}.yaml")
    workload = inputs.request.workload
    model = flexgen_model(inputs.model)
    hardware = FlexGenHardware(gpu_bytes=case.gpu * GB, host_bytes=case.host * GB, drive_bytes=DRIVE * GB)
    began = time.process_time()
    found = best_block(
        lambda batch_size, num_batches: flexgen_problem(
            model,
            hardware,
            FlexGenBlock(
                prompt_tokens=workload.longest_prompt,
                output_tokens=workload.longest_output,
                batch_size=batch_size,
                num_batches=num_batches,
            ),
        )
    )
    spent = time.process_time() - began
    assert found.best is not None, "every case has a block"
    own, bound = _own(inputs, hardware)
    return Row(
        model=case.model,
        wanted=case.wanted,
        flexgen=found.best.rate * workload.longest_output,
        most=found.most_rate * workload.longest_output,
        block=f"{found.best.num_batches} x {found.best.batch_size}",
        cpu_seconds=spent,
        own=own,
        bound=bound,
    )


def _own(inputs: ServeInputs, hardware: FlexGenHardware) -> tuple[float, float]:
    """Return the tokens a second of the best plan under our own prices, and what none exceeds."""
    workload = inputs.request.workload
    request = OffloadRequest(
        served_model=inputs.request.served_model,
        prompt_tokens=workload.longest_prompt,
        output_tokens=workload.longest_output,
        cpu_bytes_per_second=hardware.cpu,
    )
    best = plan_offload(inputs.model, inputs.clusters[0], request).of(Target.ANY)
    assert best is not None, "every case has a plan"
    return best.tokens_per_second, best.most_tokens_per_second


HEADER = f"{'case':>9} {'wanted':>7} {'FlexGen':>8} {'most':>8} {'block':>9} {'CPU s':>6} {'own':>7} {'bound':>7}"


def line_of(row: Row) -> str:
    """Return one row of the table."""
    return (
        f"{row.model:>9} {row.wanted:>7.2f} {row.flexgen:>8.4f} {row.most:>8.4f} {row.block:>9} "
        f"{row.cpu_seconds:>6.2f} {row.own:>7.3f} {row.bound:>7.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the cases; return 1 where one is below what is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=[case.model for case in CASES], help="measure one case")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="a table, or one JSON document")
    options = parser.parse_args(arguments)
    rows = [measure(case) for case in CASES if options.only in {None, case.model}]
    if options.format == "json":
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        print(HEADER)
        for row in rows:
            print(line_of(row))
    return 1 if any(row.is_worse for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
