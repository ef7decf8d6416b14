"""The chain partition problem: layers in order onto stages in order, each layer with one of its options.

Arrays name their axes:

    L  layers, in order
    O  options of a layer (for example: keep its activations, or compute them again)
    S  stages, in order
    R  ranks; a rank's capacity is shared by all of its stages

Stages may differ in speed: `seconds_SLO` then gives each stage's own seconds, and `seconds_LO` those of the fastest.

Layers on one stage are consecutive, and stages follow one another. With T_s the seconds of stage s, that is its fixed
seconds and those of its layers' options, the objective is

    bottleneck_weight * max over ranks of (sum of T_s over the rank's stages) + total_weight * sum of T_s

A pipeline of m micro-batches with one stage a rank has the weights m - 1 and 1; with v stages a rank, m - 1/v and 1/v.
A rank needs, and must have, the sum over its stages of

    fixed_bytes + sum over layers of (static_bytes + in_flight * activation_bytes)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Sums of bytes stay exact in 64-bit integers up to here.
_MAX_BYTES = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How far a solver may go, in counts that do not depend on the machine's speed.

    Args:
        max_points: Candidates that exhaustive search may look at.
        max_states: Pareto points that the dynamic programme may create.
        max_nodes: Branch-and-bound nodes of a MIP solver.
        max_cuts: Times that a MIP may be solved again because its rounding broke a capacity.
    """

    max_points: int = 2_000_000
    max_states: int = 20_000_000
    max_nodes: int = 100_000
    max_cuts: int = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """One chain partition problem; arrays are copied and made read-only.

    Args:
        bottleneck_weight: Weight of the busiest rank's seconds.
        total_weight: Weight of the summed seconds.
        seconds_LO: Seconds of each option; where stages differ, on the stage that is fastest at it.
        static_bytes_LO: Bytes that an option takes once.
        activation_bytes_LO: Bytes that it takes for each micro-batch in flight.
        fixed_seconds_S: Seconds that the stage takes whatever its layers (embedding, head).
        fixed_bytes_S: Bytes that it takes whatever its layers.
        in_flight_S: Micro-batches whose activations it keeps.
        min_layers_S: Fewest layers it may hold; 0 lets it be empty.
        max_layers_S: Most layers it may hold.
        rank_of_stage_S: The rank it runs on; every rank from 0 has a stage.
        capacity_bytes_R: What each rank may use.
        seconds_SLO: Seconds of each option on each stage; None where stages do not differ.
    """

    bottleneck_weight: float
    total_weight: float
    seconds_LO: FloatArray
    static_bytes_LO: IntArray
    activation_bytes_LO: IntArray
    fixed_seconds_S: FloatArray
    fixed_bytes_S: IntArray
    in_flight_S: IntArray
    min_layers_S: IntArray
    max_layers_S: IntArray
    rank_of_stage_S: IntArray
    capacity_bytes_R: IntArray
    seconds_SLO: FloatArray | None = None

    def __post_init__(self) -> None:
        """Freeze the arrays and check shapes and values."""
        if min(self.bottleneck_weight, self.total_weight) < 0.0:
            raise ValueError("the weights of the objective must not be negative")
        options_shape = np.shape(self.seconds_LO)
        stages_shape = np.shape(self.fixed_seconds_S)
        ranks_shape = np.shape(self.capacity_bytes_R)
        if len(options_shape) != 2 or len(stages_shape) != 1 or len(ranks_shape) != 1:
            raise ValueError("seconds_LO has two axes, fixed_seconds_S and capacity_bytes_R have one")
        if 0 in (*options_shape, *stages_shape, *ranks_shape):
            raise ValueError("there must be a layer, an option, a stage and a rank")
        self._freeze_seconds("seconds_LO")
        self._freeze_seconds("fixed_seconds_S")
        self._freeze_stage_seconds((*stages_shape, *options_shape))
        for name, shape in (
            ("static_bytes_LO", options_shape),
            ("activation_bytes_LO", options_shape),
            ("fixed_bytes_S", stages_shape),
            ("in_flight_S", stages_shape),
            ("min_layers_S", stages_shape),
            ("max_layers_S", stages_shape),
            ("rank_of_stage_S", stages_shape),
            ("capacity_bytes_R", ranks_shape),
        ):
            self._freeze_counts(name, shape)
        if set(self.rank_of_stage_S.tolist()) != set(range(self.num_ranks)):
            raise ValueError("rank_of_stage_S must name every rank of capacity_bytes_R and no other")
        if (self.min_layers_S > self.max_layers_S).any():
            raise ValueError("min_layers_S exceeds max_layers_S")
        most_LO = self.static_bytes_LO.astype(object) + int(self.in_flight_S.max()) * self.activation_bytes_LO
        if int(most_LO.max(axis=1).sum()) + int(self.fixed_bytes_S.astype(object).sum()) > _MAX_BYTES:
            raise ValueError("the bytes of all layers together do not fit 64-bit integers")

    def _freeze_seconds(self, name: str) -> None:
        array = np.array(getattr(self, name), dtype=np.float64)
        if not (np.isfinite(array).all() and (array >= 0.0).all()):
            raise ValueError(f"{name} holds seconds that are negative or not finite")
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    def _freeze_stage_seconds(self, shape: tuple[int, ...]) -> None:
        if self.seconds_SLO is None:
            return
        self._freeze_seconds("seconds_SLO")
        if self.seconds_SLO.shape != shape:
            raise ValueError(f"seconds_SLO has shape {self.seconds_SLO.shape}, not {shape}")
        if not np.array_equal(self.seconds_SLO.min(axis=0), self.seconds_LO):
            raise ValueError("seconds_LO must hold the least seconds of seconds_SLO")

    def _freeze_counts(self, name: str, shape: tuple[int, ...]) -> None:
        given = np.asarray(getattr(self, name))
        if given.shape != shape:
            raise ValueError(f"{name} has shape {given.shape}, not {shape}")
        if given.dtype.kind not in "iu":
            raise ValueError(f"{name} must hold integers, not {given.dtype}")
        if (given < 0).any() and name != "capacity_bytes_R":
            raise ValueError(f"{name} holds a negative number")
        array = given.astype(np.int64)
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def num_layers(self) -> int:
        """Return the number of layers."""
        return int(self.seconds_LO.shape[0])

    @property
    def num_options(self) -> int:
        """Return the number of options of each layer."""
        return int(self.seconds_LO.shape[1])

    @property
    def num_stages(self) -> int:
        """Return the number of stages."""
        return int(self.fixed_seconds_S.shape[0])

    @property
    def num_ranks(self) -> int:
        """Return the number of ranks."""
        return int(self.capacity_bytes_R.shape[0])

    @property
    def shares_ranks(self) -> bool:
        """Return whether some rank runs more than one stage."""
        return self.num_ranks < self.num_stages

    def stage_seconds_LO(self, stage: int) -> FloatArray:
        """Return the seconds of each option on one stage."""
        return self.seconds_LO if self.seconds_SLO is None else self.seconds_SLO[stage]

    @cached_property
    def kind_L(self) -> tuple[int, ...]:
        """Return for each layer the lowest layer that is equal to it in every option."""
        first_of: dict[bytes, int] = {}
        kinds = []
        for layer in range(self.num_layers):
            key = b"".join(
                array[layer].tobytes() for array in (self.seconds_LO, self.static_bytes_LO, self.activation_bytes_LO)
            )
            if self.seconds_SLO is not None:
                key += self.seconds_SLO[:, layer].tobytes()
            kinds.append(first_of.setdefault(key, layer))
        return tuple(kinds)

    def bytes_LO(self, stage: int) -> IntArray:
        """Return the bytes of each option on one stage."""
        demand_LO: IntArray = self.static_bytes_LO + self.in_flight_S[stage] * self.activation_bytes_LO
        return demand_LO

    def weighted(self, *, bottleneck_seconds: float, total_seconds: float) -> float:
        """Return the objective of these seconds."""
        return self.bottleneck_weight * bottleneck_seconds + self.total_weight * total_seconds

    def simple_bound(self) -> float:
        """Return a bound without memory: every layer at its fastest, spread evenly over the ranks."""
        fastest_L = self.seconds_LO.min(axis=1)
        total = float(fastest_L.sum() + self.fixed_seconds_S.sum())
        bottleneck = max(total / self.num_ranks, float(fastest_L.max()))
        return self.weighted(bottleneck_seconds=bottleneck, total_seconds=total) * (1.0 - 1e-12)
