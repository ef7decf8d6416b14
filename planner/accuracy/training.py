"""Predictions of training runs."""

from dataclasses import dataclass, replace

from planner.accuracy.measurements import Row
from planner.accuracy.runs import Run, run_of
from planner.capabilities import ANY
from planner.evaluate import Evaluation, evaluate
from planner.graph import CoreAttention, ModelGraph, required_flops_per_sequence
from planner.layers import build_graph
from planner.memory import peak_memory_bytes
from planner.placement import place
from planner.specs import ModelSpec
from planner.workload import TrainWorkload
from profiles.analytic import AnalyticCostModel
from profiles.errors import CoverageError
from profiles.hardware import Cluster
from profiles.software import Software

OUTSIDE_THE_ALLOCATOR = frozenset({"context and libraries", "communicators", "fragmentation"})
"""Terms of the ledger that a framework's own figure of its peak (`max_memory_allocated`) does not hold."""

GIB, GB = 1 << 30, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One training row beside its prediction; what the row does not say, or what has no price, is None.

    Args:
        row: The row.
        measured_step_seconds: From its step time, else its tokens a second, else its model flops.
        measured_tokens_per_second_per_gpu: From its tokens a second, else its step time.
        measured_peak_bytes: Peak of the framework's allocator.
        measured_fits: Whether it ran.
        predicted_step_seconds: Step time.
        predicted_peak_bytes: Peak on the GPU, context and communicators included.
        predicted_allocated_bytes: Peak of the allocator.
        predicted_fits: Whether the peak is below the GPU's memory.
        tokens_per_step: Tokens of one step.
        num_gpus: GPUs.
        has_experts: The model has routed experts.
        assumptions: What was assumed.
        error: Why there is no prediction.
    """

    row: Row
    measured_step_seconds: float | None = None
    measured_tokens_per_second_per_gpu: float | None = None
    measured_peak_bytes: float | None = None
    measured_fits: bool = True
    predicted_step_seconds: float | None = None
    predicted_peak_bytes: int | None = None
    predicted_allocated_bytes: int | None = None
    predicted_fits: bool | None = None
    tokens_per_step: int | None = None
    num_gpus: int | None = None
    has_experts: bool = False
    assumptions: tuple[str, ...] = ()
    error: str | None = None

    @property
    def predicted_tokens_per_second_per_gpu(self) -> float | None:
        """Return the predicted throughput."""
        if self.predicted_step_seconds is None or self.tokens_per_step is None or not self.num_gpus:
            return None
        return self.tokens_per_step / self.predicted_step_seconds / self.num_gpus


class TrainingPredictor:
    """Predicts training runs; operators and prices are shared between rows that have them in common."""

    def __init__(self) -> None:
        # Models and clusters are known by identity: rows that name the same one get the same object.
        self._graphs: dict[tuple[int, TrainWorkload], tuple[ModelSpec, ModelGraph]] = {}
        self._prices: dict[tuple[int, Software], tuple[Cluster, AnalyticCostModel]] = {}

    def predict(self, row: Row) -> Prediction:
        """Return the prediction of one row; what cannot be priced says why."""
        fits = row.text("status").lower() != "oom"
        try:
            run = run_of(row)
            graph = self._graph(run.model, run.workload)
            placed = place(run.model, graph, run.layout, run.workload, ANY)
            evaluation = evaluate(placed, self._cost_model(run.cluster, run.software))
            measured = _measured_step_seconds(row, run, graph)
        except (ValueError, CoverageError) as error:
            return Prediction(row=row, measured_fits=fits, error=" ".join(str(error).split()))
        return _prediction(row, run, evaluation, measured)

    def _graph(self, model: ModelSpec, workload: TrainWorkload) -> ModelGraph:
        # The batch decides no operator.
        workload = replace(workload, global_batch_size=1)
        found = self._graphs.get((id(model), workload))
        if found is None:
            found = self._graphs[id(model), workload] = (model, build_graph(model, workload))
        return found[1]

    def _cost_model(self, cluster: Cluster, software: Software) -> AnalyticCostModel:
        found = self._prices.get((id(cluster), software))
        if found is None:
            found = self._prices[id(cluster), software] = (cluster, AnalyticCostModel(cluster, software))
        return found[1]


def _prediction(row: Row, run: Run, evaluation: Evaluation, measured: float | None) -> Prediction:
    inside = tuple(line for line in evaluation.memory if line.term not in OUTSIDE_THE_ALLOCATOR)
    num_gpus, tokens = row.needed("num_gpus"), run.workload.tokens_per_step
    return Prediction(
        row=row,
        measured_step_seconds=measured,
        measured_tokens_per_second_per_gpu=None if measured is None else tokens / measured / num_gpus,
        measured_peak_bytes=_measured_peak_bytes(row),
        measured_fits=row.text("status").lower() != "oom",
        predicted_step_seconds=evaluation.step_seconds,
        predicted_peak_bytes=evaluation.peak_memory_bytes,
        predicted_allocated_bytes=peak_memory_bytes(inside),
        predicted_fits=evaluation.peak_memory_bytes <= run.cluster.device.memory_bytes,
        tokens_per_step=tokens,
        num_gpus=num_gpus,
        has_experts=run.model.has_experts,
        assumptions=(*run.assumptions, *evaluation.assumptions),
    )


def _measured_step_seconds(row: Row, run: Run, graph: ModelGraph) -> float | None:
    """Return the step time that a row says; flops count attention whole, as Megatron-LM's own figure does."""
    seconds = row.number("step_time_s")
    if seconds:
        return seconds
    num_gpus, workload = row.needed("num_gpus"), run.workload
    tokens = row.number("tokens_per_s_per_gpu")
    if tokens:
        return workload.tokens_per_step / (tokens * num_gpus)
    teraflops = row.number("tflops_per_gpu")
    if teraflops:
        flops = required_flops_per_sequence(run.model, graph, seq_len=workload.seq_len)
        flops = (flops + _masked_flops_per_sequence(run.model, graph)) * workload.global_batch_size
        return flops / (teraflops * 1e12 * num_gpus)
    return None


def _masked_flops_per_sequence(model: ModelSpec, graph: ModelGraph) -> int:
    """Return the flops of what the causal mask hides: about as many as of what it shows."""
    return sum(
        run.count * 3 * 2 * work.pairs * work.num_heads * (work.qk_head_dim + work.v_head_dim)
        for run in model.runs
        for work in (operator.work for operator in graph.blocks[run.block].operators)
        if isinstance(work, CoreAttention)
    )


def _measured_peak_bytes(row: Row) -> float | None:
    peak = row.number("peak_mem_gb")
    if not peak:
        return None
    return peak * (GIB if "GiB" in row.text("notes") else GB)
