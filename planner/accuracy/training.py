"""Predictions of training runs."""

from dataclasses import dataclass, replace

from planner.accuracy.machines import CostModels
from planner.accuracy.measurements import Row
from planner.accuracy.runs import Run, run_of
from planner.evaluate import Evaluation, evaluate, simulated_step_seconds
from planner.graph import CoreAttention, ModelGraph, required_flops_per_sequence
from planner.layers import build_graph
from planner.memory import memory_ledger, peak_memory_bytes
from planner.placement import PlacedModel, place
from planner.plan import MemoryLine, Phase
from planner.specs import ModelSpec
from planner.workload import TrainWorkload
from profiles.errors import CoverageError

OUTSIDE_THE_ALLOCATOR = frozenset({"context and libraries", "communicators", "fragmentation"})
"""Terms of the ledger that a framework's own figure of its peak (`max_memory_allocated`) does not hold."""

HEAD_OR_LAYER = frozenset({"logits and loss", "backward temporaries"})
"""Terms of the ledger of which a loss takes the place."""

BYTES_OF_A_LOGIT = 2 + 4 + 4 + 4 + 2
"""16-bit logits, their fp32 copy, its log-softmax, the gradient in fp32 and in 16 bit: PyTorch's cross_entropy."""

GIB, GB = 1 << 30, 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One training row beside its prediction; what the row does not say, or what has no price, is None.

    Args:
        row: The row.
        measured_step_seconds: From its step time, else its tokens a second, else its model flops.
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
        return self._throughput(self.predicted_step_seconds)

    @property
    def measured_tokens_per_second_per_gpu(self) -> float | None:
        """Return the measured throughput."""
        return self._throughput(self.measured_step_seconds)

    def _throughput(self, step_seconds: float | None) -> float | None:
        if not step_seconds or self.tokens_per_step is None or not self.num_gpus:
            return None
        return self.tokens_per_step / step_seconds / self.num_gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRun:
    """A run, and what of it lies on which rank."""

    run: Run
    placed: PlacedModel


class TrainingPredictor:
    """Predicts training runs; operators and prices are shared between rows that have them in common."""

    def __init__(self) -> None:
        # Models are known by identity: rows that name the same one get the same object.
        self._graphs: dict[tuple[int, TrainWorkload, bool], tuple[ModelSpec, ModelGraph]] = {}
        self._cost_models = CostModels(sustained=True)

    def predict(self, row: Row) -> Prediction:
        """Return the prediction of one row; what cannot be priced says why."""
        fits = row.text("status").lower() != "oom"
        try:
            run = run_of(row)
            placed = self._placed(run).placed
            evaluation = evaluate(placed, self._cost_models.of(run.cluster, run.software))
            lines = self._ledger(run, placed, evaluation)
            measured = _measured_step_seconds(row, run, self._graph(run.model, run.workload, eager=False))
            measured_peak = _measured_peak_bytes(row)
        except (ValueError, CoverageError) as error:
            return Prediction(row=row, measured_fits=fits, error=" ".join(str(error).split()))
        return replace(
            _prediction(row, run, evaluation, lines), measured_step_seconds=measured, measured_peak_bytes=measured_peak
        )

    def placed(self, row: Row) -> PlacedRun:
        """Return what a row that `predict` predicts runs where."""
        return self._placed(run_of(row))

    def step_seconds(self, found: PlacedRun) -> float:
        """Return the predicted step time at the constants' present values."""
        if found.run.model.has_experts:  # how many kernels route tokens is a constant that is seen when placing
            found = self._placed(found.run)
        return simulated_step_seconds(found.placed, self._cost_models.of(found.run.cluster, found.run.software))

    def forget_prices(self) -> None:
        """Forget every price: constants have changed."""
        self._cost_models = CostModels(sustained=True)

    def _placed(self, run: Run) -> PlacedRun:
        graph = self._graph(run.model, run.workload, eager=False)
        return PlacedRun(run=run, placed=place(run.model, graph, run.layout, run.workload, run.stack.capabilities))

    def _ledger(self, run: Run, placed: PlacedModel, evaluation: Evaluation) -> tuple[MemoryLine, ...]:
        """Return the ledger of a run as its stack keeps it."""
        lines = evaluation.memory
        if run.stack.plain_modules:
            graph = self._graph(run.model, run.workload, eager=True)
            lines = memory_ledger(place(run.model, graph, run.layout, run.workload, run.stack.capabilities))
        return _with_whole_logits(lines, placed) if run.stack.whole_logits else lines

    def _graph(self, model: ModelSpec, workload: TrainWorkload, *, eager: bool) -> ModelGraph:
        key = (id(model), replace(workload, global_batch_size=1), eager)  # the batch decides no operator
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = (model, build_graph(model, key[1], eager=eager))
        return found[1]


def _with_whole_logits(lines: tuple[MemoryLine, ...], placed: PlacedModel) -> tuple[MemoryLine, ...]:
    """Return the ledger with a loss over the whole vocabulary on the last rank, where it outweighs what is there."""
    layout = placed.layout
    rank = layout.first_global_rank(layout.pp - 1)
    tokens = placed.workload.seq_len // layout.cp * layout.micro_batch_size
    whole = tokens * placed.model.vocab_size * BYTES_OF_A_LOGIT
    there = sum(
        line.num_bytes
        for line in lines
        if line.rank == rank and line.phase is Phase.FORWARD_BACKWARD and line.term in HEAD_OR_LAYER
    )
    if whole <= there:
        return lines
    more = MemoryLine(
        rank=rank,
        phase=Phase.FORWARD_BACKWARD,
        term="whole logits",
        num_bytes=whole - there,
        source=f"{BYTES_OF_A_LOGIT} bytes a logit: kept in 16 bit, copied, softmax and gradient in fp32",
    )
    return (*lines, more)


def _prediction(row: Row, run: Run, evaluation: Evaluation, lines: tuple[MemoryLine, ...]) -> Prediction:
    inside = tuple(line for line in lines if line.term not in OUTSIDE_THE_ALLOCATOR)
    peak = peak_memory_bytes(lines)
    return Prediction(
        row=row,
        measured_fits=row.text("status").lower() != "oom",
        predicted_step_seconds=evaluation.step_seconds,
        predicted_peak_bytes=peak,
        predicted_allocated_bytes=peak_memory_bytes(inside),
        predicted_fits=peak <= run.cluster.device.memory_bytes,
        tokens_per_step=run.workload.tokens_per_step,
        num_gpus=row.needed("num_gpus"),
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
