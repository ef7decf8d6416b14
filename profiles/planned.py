"""The cost model of training: analytic, with measured residuals of matrix products where there are some.

Where the cluster itself was measured, its profile comes first (`profiles.profiled`).
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from profiles.analytic import AnalyticCostModel
from profiles.estimate import CostModel, Estimate, Source
from profiles.grids import GemmGrid, shipped_grids
from profiles.hardware import Cluster
from profiles.ops import Collective, ComputeOp, Gemm
from profiles.slowed import calibrated
from profiles.software import CURRENT_SOFTWARE, Software, TensorParallelOverlap
from profiles.store import shipped_device_like
from profiles.unequal import UnequalCostModel


def cost_model_on(cluster: Cluster, software: Software = CURRENT_SOFTWARE) -> CostModel:
    """Return what prices training on a cluster; where its nodes differ, at best."""
    if cluster.unequal is not None:
        return UnequalCostModel(cluster, software, with_tables=_inside_nodes)
    return with_residuals(AnalyticCostModel(cluster, software))


def _inside_nodes(analytic: AnalyticCostModel) -> CostModel:
    """Return `with_residuals` for nodes whose links to others are not those that a profile ran on."""
    return with_residuals(analytic, between_nodes=False)


def with_residuals(analytic: AnalyticCostModel, *, between_nodes: bool = True) -> CostModel:
    """Return a cost model with the measured residuals of its GPU, or of one with the same chip, and the calibration.

    Args:
        analytic: Prices everything.
        between_nodes: What the cluster's profile says of collectives between nodes holds for its links.

    Raises:
        ProfileFileError: The cluster's profile cannot be read, or has changed.
    """
    measured = _measured(analytic, between_nodes=between_nodes)
    return calibrated(measured, cluster=analytic.cluster, software=analytic.software)


def _measured(analytic: AnalyticCostModel, *, between_nodes: bool) -> CostModel:
    """Return a cost model with the measured residuals of its GPU, or of one with the same chip; else itself.

    Raises:
        ProfileFileError: The cluster's profile cannot be read, or has changed.
    """
    device = analytic.cluster.device
    name = shipped_device_like(device)
    grids = {} if name is None else shipped_grids(name)
    shipped = MeasuredCostModel(analytic, grids, is_own=name == device.name) if grids else analytic
    if analytic.cluster.profile is None:
        return shipped
    # SciPy, which interpolates between measured rows, is loaded only where there are some.
    from profiles.profiled import with_profile  # noqa: PLC0415
    from profiles.recorded import recording_of  # noqa: PLC0415

    return with_profile(analytic, shipped, recording_of(analytic.cluster.profile), between_nodes=between_nodes)


class MeasuredCostModel:
    """An analytic cost model whose matrix products are multiplied by measured residuals.

    seconds = sustained analytic price * exp(residual in a burst): what hours of training keep of a burst is taken to be
    the same for all shapes.

    Args:
        analytic: Prices everything.
        grids: Residuals by number format.
        is_own: They were measured on this very GPU.
    """

    def __init__(self, analytic: AnalyticCostModel, grids: Mapping[str, GemmGrid], *, is_own: bool) -> None:
        self.analytic = analytic
        self.cluster = analytic.cluster
        self._grids = grids
        self._is_own = is_own
        self.compute = lru_cache(maxsize=None)(self._compute)

    def _compute(self, operation: ComputeOp) -> Estimate:
        """Return the time of one operation on one GPU.

        Raises:
            CoverageError: The GPU has no rate for the format, or its architecture no constants.
        """
        estimate = self.analytic.compute(operation)
        if not isinstance(operation, Gemm) or operation.batch != 1:
            return estimate
        grid = self._grids.get("bf16" if operation.dtype == "fp16" else operation.dtype)
        if grid is None:
            return estimate
        factor, outside = grid.factor(operation.m, operation.n, operation.k)
        source = Source.EXTRAPOLATED if outside else Source.INTERPOLATED
        return replace(
            estimate,
            seconds=estimate.seconds * factor,
            source=source if self._is_own else Source.ASSUMED,
            note=f"{estimate.note}; residual of {grid.origin}",
        )

    def collective(self, operation: Collective) -> Estimate:
        """Return the time of one collective, all its ranks taking part."""
        return self.analytic.collective(operation)

    @property
    def launch_seconds(self) -> float:
        """Return the host's time for one launch."""
        return self.analytic.launch_seconds

    @property
    def tensor_parallel_overlap(self) -> TensorParallelOverlap:
        """Return what tensor-parallel collectives run beside."""
        return self.analytic.tensor_parallel_overlap

    @property
    def overlap_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a collective runs beside it."""
        return self.analytic.overlap_slowdown

    @property
    def transfer_slowdown(self) -> float:
        """Return the seconds that a kernel loses for each second that a pipeline send or receive runs beside it."""
        return self.analytic.transfer_slowdown

    @property
    def copy_slowdown(self) -> float | None:
        """Return the seconds that a kernel loses for each second of a copy to or from the host beside it, if known."""
        return self.analytic.copy_slowdown
