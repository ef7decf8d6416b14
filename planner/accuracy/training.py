"""Predictions of training runs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from planner.accuracy.kept import EVERY_MODULE, with_composed_norms, with_copies, with_products_kept
from planner.accuracy.machines import CostModels
from planner.accuracy.measurements import Row
from planner.accuracy.runs import Run, run_of
from planner.evaluation.evaluate import Evaluation, evaluate, simulated_step_seconds
from planner.layout import Granularity, Recompute
from planner.memory.ledger import memory_ledger, peak_memory_bytes
from planner.models.graph import CoreAttention, ModelGraph
from planner.models.layers import build_graph
from planner.models.required_flops import required_flops_per_sequence
from planner.models.specs import ModelSpec
from planner.plans.certainty import training_band
from planner.plans.plan import MemoryLine
from planner.ranks.placement import PlacedModel, place
from planner.requests.workload import TrainWorkload
from planner.units import GIB
from profiles.errors import CoverageError

OUTSIDE_THE_ALLOCATOR = frozenset({"context and libraries", "communicators"})
"""Terms of the ledger that PyTorch's allocator does not hold."""

NOT_IN_USE = frozenset({"fragmentation"})
"""Terms that the allocator has reserved and no tensor uses: not in `max_memory_allocated`."""

FUNCTIONAL_TEST = "ci-functional-test"

GB = 10**9


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
        band_half_width: Of the band around the predicted step time, as a factor less one.
        architecture: Generation of its GPUs.
        filled: What was assumed of the row, where it says nothing.
        priced: What was assumed of costs and memory.
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
    band_half_width: float | None = None
    architecture: str = ""
    filled: tuple[str, ...] = ()
    priced: tuple[str, ...] = ()
    error: str | None = None

    @property
    def assumptions(self) -> tuple[str, ...]:
        """Return all that was assumed."""
        return (*self.filled, *self.priced)

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
        self._cost_models = CostModels()

    def predict(self, row: Row) -> Prediction:
        """Return the prediction of one row; what cannot be priced says why."""
        fits = row.text("status").lower() != "oom"
        try:
            run = run_of(row)
            placed = self._placed(run).placed
            run, lines = self._memory(run)
            evaluation = evaluate(placed, self._cost_models.of(run.cluster, run.software), memory=lines)
            measured = _measured_step_seconds(row, run, self._graph(run.model, run.workload, eager=False))
            measured_peak = _measured_peak_bytes(row)
        except (ValueError, CoverageError) as error:
            return Prediction(row=row, measured_fits=fits, error=" ".join(str(error).split()))
        return replace(
            _prediction(row, run, evaluation), measured_step_seconds=measured, measured_peak_bytes=measured_peak
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
        self._cost_models = CostModels()

    def _placed(self, run: Run) -> PlacedRun:
        graph = self._graph(run.model, run.workload, eager=False)
        return PlacedRun(run=run, placed=place(run.model, graph, run.layout, run.workload, run.stack.capabilities))

    def _ledger(self, run: Run, recompute: Recompute) -> tuple[MemoryLine, ...]:
        """Return the ledger of a run as its stack keeps it, with `recompute` recomputed."""
        stack, layout, workload = run.stack, replace(run.layout, recompute=recompute), run.workload
        graph = self._graph(run.model, workload, eager=stack.plain_modules)
        if stack.plain_modules:
            graph = with_copies(graph, sequences=layout.micro_batch_size, gathered=layout.sequence_parallel)
            if not run.software.fused_norms:
                graph = with_composed_norms(graph)
        if run.keeps_products:
            kept = with_products_kept(graph, run.model, workload, compiled=run.compiled)
            if kept is not None:
                graph, layout = kept, replace(layout, recompute=EVERY_MODULE)
        return memory_ledger(place(run.model, graph, layout, workload, stack.capabilities), run.habits)

    def _memory(self, run: Run) -> tuple[Run, tuple[MemoryLine, ...]]:
        """Return a run with its ledger; where a silent row would not fit, its layers are taken as recomputed whole."""
        lines = self._ledger(run, run.layout.recompute)
        if run.recompute_said or peak_memory_bytes(lines) <= run.cluster.device.memory_bytes:
            return run, lines
        assumption = "recompute: in memory full, as a recipe that does not fit otherwise; not in time"
        assumed = replace(run, assumptions=(*run.assumptions, assumption))
        return assumed, self._ledger(assumed, Recompute(granularity=Granularity.FULL))

    def _graph(self, model: ModelSpec, workload: TrainWorkload, *, eager: bool) -> ModelGraph:
        key = (id(model), replace(workload, global_batch_size=1), eager)  # the batch decides no operator
        found = self._graphs.get(key)
        if found is None:
            found = self._graphs[key] = (model, build_graph(model, key[1], eager=eager))
        return found[1]


def allocator_peak_bytes(lines: Iterable[MemoryLine], *, reserved: bool = False) -> int:
    """Return the peak that a framework prints: of what tensors use, or of what the allocator has reserved for them."""
    unseen = OUTSIDE_THE_ALLOCATOR if reserved else OUTSIDE_THE_ALLOCATOR | NOT_IN_USE
    return peak_memory_bytes(tuple(line for line in lines if line.term not in unseen))


def _prediction(row: Row, run: Run, evaluation: Evaluation) -> Prediction:
    printed = evaluation.memory
    if run.stack.reports_last_rank:
        last = run.layout.first_global_rank(run.layout.pp - 1)
        printed = tuple(line for line in printed if line.rank == last)
    return Prediction(
        row=row,
        measured_fits=row.text("status").lower() != "oom",
        predicted_step_seconds=evaluation.step_seconds,
        predicted_peak_bytes=evaluation.peak_memory_bytes,
        predicted_allocated_bytes=allocator_peak_bytes(printed, reserved=run.stack.reports_reserved),
        predicted_fits=evaluation.peak_memory_bytes <= run.cluster.device.memory_bytes,
        tokens_per_step=run.workload.tokens_per_step,
        num_gpus=row.needed("num_gpus"),
        has_experts=run.model.has_experts,
        band_half_width=training_band(has_experts=run.model.has_experts, device=run.cluster.device).value,
        architecture=run.cluster.device.architecture,
        filled=run.assumptions,
        priced=evaluation.assumptions,
    )


def _measured_step_seconds(row: Row, run: Run, graph: ModelGraph) -> float | None:
    """Return the step time that a row says; flops count attention whole, as Megatron-LM's own figure does.

    A functional test checks norms and gradients in every step of a tiny model: its time measures no training.
    """
    if row.text("mode") == FUNCTIONAL_TEST:
        return None
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
