"""Predictions of single operations: matrix products and collectives, in a burst as kernel benchmarks run them."""

import re
from dataclasses import dataclass

from planner.accuracy.machines import CostModels, cluster_named
from planner.accuracy.measurements import Kind, Row
from profiles.errors import CoverageError
from profiles.ops import Collective, CollectiveKind, Gemm

_GEMM_FORMATS = {"bfloat16": ("bf16", 2), "float16": ("fp16", 2), "fp8": ("fp8", 1), "fp8_block": ("fp8", 1)}
_OPERATIONS = {
    "all_reduce": CollectiveKind.ALL_REDUCE,
    "all_gather": CollectiveKind.ALL_GATHER,
    "reduce_scatter": CollectiveKind.REDUCE_SCATTER,
    "alltoall": CollectiveKind.ALL_TO_ALL,
    "all_to_all": CollectiveKind.ALL_TO_ALL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationPrediction:
    """One measured operation beside its prediction.

    Args:
        row: The row.
        measured_us: Measured microseconds; None where the row does not say.
        predicted_us: Predicted microseconds; None with an error.
        error: Why there is no prediction.
    """

    row: Row
    measured_us: float | None = None
    predicted_us: float | None = None
    error: str | None = None


class OperationPredictor:
    """Predicts rows of one kind of operation.

    Args:
        kind: The kind.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._cost_models = CostModels(sustained=False)

    def predict(self, row: Row) -> OperationPrediction:
        """Return the prediction of one row; what cannot be priced says why."""
        try:
            measured = row.number("latency_us")
            seconds = self._seconds(row)
        except (ValueError, CoverageError) as error:
            return OperationPrediction(row=row, error=" ".join(str(error).split()))
        return OperationPrediction(row=row, measured_us=measured, predicted_us=seconds * 1e6)

    def _seconds(self, row: Row) -> float:
        match self.kind:
            case Kind.GEMM:
                return self._gemm(row)
            case Kind.COLLECTIVES:
                return self._collective(row)
            case _:
                raise ValueError(f"{self.kind} has no kernel model yet")

    def _gemm(self, row: Row) -> float:
        name = row.text("dtype")
        if name not in _GEMM_FORMATS:
            raise ValueError(f"dtype {row.quoted('dtype')} has no surface")
        dtype, width = _GEMM_FORMATS[name]
        cluster, _ = cluster_named(row.text("system"), 1)
        m, n, k = (row.needed(size) for size in ("m", "n", "k"))
        product = Gemm(m=m, n=n, k=k, dtype=dtype, input_bytes_per_element=width, output_bytes_per_element=2)
        return self._cost_models.of(cluster).compute(product).seconds

    def _collective(self, row: Row) -> float:
        name = row.text("op").lower()
        if name not in _OPERATIONS:
            raise ValueError(f"op {row.quoted('op')} is no collective")
        if not re.match(r"nccl|rccl|$", row.text("library").lower()):
            raise ValueError(f"library {row.quoted('library')} has no price")
        num_gpus, num_nodes = row.needed("num_gpus"), row.count("num_nodes") or 1
        cluster, _ = cluster_named(row.text("system"), num_gpus)
        if num_gpus > num_nodes * cluster.gpus_per_node:
            raise ValueError(f"{num_gpus} GPUs do not stand on {num_nodes} nodes of {cluster.gpus_per_node}")
        if num_nodes > 1 and num_gpus < num_nodes * cluster.gpus_per_node:
            raise ValueError(f"{num_gpus} GPUs on {num_nodes} nodes do not fill nodes of {cluster.gpus_per_node}")
        operation = Collective(kind=_OPERATIONS[name], buffer_bytes=row.needed("bytes"), size=num_gpus, stride=1)
        return self._cost_models.of(cluster).collective(operation).seconds
