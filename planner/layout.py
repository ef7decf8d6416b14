"""A layout: every degree of parallelism and what goes with it, and the rules that make one legal.

The ranks of a pipeline stage form two grids over the same GPUs, as in Megatron-LM's default order `tp-cp-ep-dp-pp`:

    everything but routed experts:  tp fastest, then cp, then dp
    routed experts:                 etp fastest, then ep, then edp

    tp cp dp = etp ep edp, and pp is slowest in both.

In its other order, `tp-cp-ep-pp-dp`, the stages of one model replica are neighbours, and dp (edp) is slowest.

Inside cp the `ulysses` ranks that exchange heads are neighbours, and the rings connect ranks `ulysses` apart. Virtual
pipeline stage k runs on pipeline rank k mod pp as its chunk k // pp.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate

STAGES_OUTERMOST = "tp-cp-ep-dp-pp"
"""The default order of ranks, fastest axis first."""

REPLICAS_OUTERMOST = "tp-cp-ep-pp-dp"
"""The order in which the stages of one model replica are neighbours."""


ON_HOSTS, IN_TURN, PIPELINED = 0, 1, 2
"""How the drives of a node take part in an optimizer step: not at all, or in either of two ways."""

GPU_WEIGHTS, HOST_WEIGHTS, DRIVE_WEIGHTS = 0, 1, 2
"""Where each rank's share of the weights lies between the passes of layers."""

OFFLOADABLE = ("qkv_linear", "core_attn", "attn_proj", "expert_fc1", "moe_act")
"""Modules of a layer whose saved tensors can wait on the host, in the order of a forward pass."""


class Granularity(StrEnum):
    """How much of the forward pass is run again in backward."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"
    PER_LAYER = "per-layer"


class Schedule(StrEnum):
    """Pipeline schedules."""

    NO_PIPELINE = "none"
    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved-1f1b"


class ContextKind(StrEnum):
    """How attention crosses the context-parallel ranks.

    RING passes keys and values round (Liu et al., arXiv 2310.01889), ULYSSES exchanges heads for tokens in an
    all-to-all (Jacobs et al., arXiv 2309.14509), ULYSSES_RING does the one inside the other (Fang and Zhao, arXiv
    2405.07719).
    """

    RING = "ring"
    ULYSSES = "ulysses"
    ULYSSES_RING = "ulysses-ring"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """What is recomputed in backward.

    Args:
        granularity: None, the named modules, or whole layers.
        modules: With selective: the modules whose inner tensors are dropped, by the names of
        `planner.models.graph.Module`. num_layers: With full: layers of each virtual stage that are recomputed, from its
        first; None means all. layers: With per-layer: what is recomputed of each decoder layer, in order; empty while
        layers are not placed.
    """

    granularity: Granularity
    modules: tuple[str, ...] = ()
    num_layers: int | None = None
    layers: "tuple[Recompute, ...]" = ()

    def __post_init__(self) -> None:
        """Check that the parts belong to the granularity."""
        if (self.granularity is Granularity.SELECTIVE) != bool(self.modules):
            raise ValueError("modules are named exactly with selective recompute")
        if self.num_layers is not None and self.granularity is not Granularity.FULL:
            raise ValueError("num_layers belongs to full recompute")
        if self.layers and self.granularity is not Granularity.PER_LAYER:
            raise ValueError("layers are named one by one with per-layer recompute only")
        if any(layer.is_per_layer or layer.num_layers is not None for layer in self.layers):
            raise ValueError("a layer is recomputed whole, in modules, or not at all")

    @property
    def is_per_layer(self) -> bool:
        """Return whether each layer has a choice of its own."""
        return self.granularity is Granularity.PER_LAYER

    def of_layer(self, index: int) -> "Recompute":
        """Return what is recomputed of one decoder layer of the model, where stages do not decide it."""
        assert self.num_layers is None, "which layers are recomputed follows from the stages"
        return self.layers[index] if self.is_per_layer else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Which communication runs beside computation."""

    grad_reduce: bool
    param_gather: bool
    p2p: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """What lies in host memory or on a node's drives instead of the GPU's memory.

    Args:
        optimizer_fraction: Part of the optimizer's states that is kept and updated on the host, above 0; with
            zero_stage 3 as nearly as whole sub-groups make it (`planner.offloading.sub_groups`).
        overlapped: Gradients go to the host and parameters come back while other tensors are updated there; not with
            zero_stage 3, where gradients go with each backward pass. With `drives`: states are read and written while
            others are updated.
        parameters: Each rank's share of the 16-bit weights lies there too, and is fetched for every pass; only with
            zero_stage 3 and all optimizer states.
        drives: The states lie on the drives of the node, and are brought to the host to be updated; only with
            zero_stage 3 and all of them.
        parameter_drives: The weights lie on the drives and not on the host, and come from there for every pass; only
            with `parameters`.
    """

    optimizer_fraction: float
    overlapped: bool = True
    parameters: bool = False
    drives: bool = False
    parameter_drives: bool = False

    def __post_init__(self) -> None:
        """Check that it is a part, and that weights on drives are not on the GPUs."""
        if not 0.0 < self.optimizer_fraction <= 1.0:
            raise ValueError(f"optimizer_fraction = {self.optimizer_fraction} is not above 0 and at most 1")
        if self.parameter_drives and not self.parameters:
            raise ValueError("parameter_drives without parameters: weights on drives do not stay on the GPUs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One virtual pipeline stage: a run of decoder layers, with the embedding or the LM head at the ends.

    Args:
        first_layer: Index of its first decoder layer, from 0.
        num_layers: Decoder layers it holds; 0 is legal for a stage that holds the embedding or the head.
        has_embedding: It holds the embedding.
        has_head: It holds the final norm, the LM head and the loss.
    """

    first_layer: int
    num_layers: int
    has_embedding: bool
    has_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a model is laid out on `tp * cp * pp * dp` GPUs.

    Args:
        tp: Tensor-parallel degree.
        sequence_parallel: Norms and residuals are split over tp along the sequence.
        pp: Pipeline-parallel degree.
        vpp: Virtual stages per pipeline rank.
        cp: Context-parallel degree.
        ulysses: Part of cp that exchanges heads; the other factor passes keys and values round a ring.
        state_exchange: Linear-attention layers exchange their states over cp instead of their heads.
        ep: Expert-parallel degree.
        etp: Tensor-parallel degree of the experts.
        dp: Data-parallel degree.
        zero_stage: What is split over dp and cp (experts: over edp): 0 nothing, 1 optimizer states, 2 and gradients,
            3 and weights.
        state_replicas: Groups of data-parallel ranks that each hold everything that is split: hybrid sharding (HSDP).
        secondary_shard: With zero_stage 3: ranks that split a second 16-bit copy of the weights, from which backward
            gathers (ZeRO++ hpZ, arXiv 2306.10209); 1 keeps none.
        micro_batch_size: Sequences of one micro-batch.
        num_microbatches: Micro-batches of one step on one data-parallel replica.
        schedule: Pipeline schedule.
        recompute: What is recomputed.
        offload: What lies in host memory; None for nothing.
        offloaded_layers: How many of the first layers keep their saved tensors in host memory between passes.
        offloaded_modules: Modules of every layer whose saved tensors wait there, by Megatron-LM's names
            (`planner.offloading.modules`).
        overlap: Which communication is hidden.
        rank_order: Mesh axes from fastest to slowest.
        node_order: Where nodes differ: the node at each place of the mesh, places filled by consecutive ranks. Empty
            for the order in which the cluster lists them.
        stages: The virtual stages in model order, `pp * vpp` of them.
    """

    tp: int
    sequence_parallel: bool
    pp: int
    vpp: int
    dp: int
    zero_stage: int
    micro_batch_size: int
    num_microbatches: int
    schedule: Schedule
    recompute: Recompute
    overlap: Overlap
    stages: tuple[Stage, ...]
    cp: int = 1
    ulysses: int = 1
    state_exchange: bool = False
    ep: int = 1
    etp: int = 1
    state_replicas: int = 1
    secondary_shard: int = 1
    offload: Offload | None = None
    offloaded_layers: int = 0
    offloaded_modules: tuple[str, ...] = ()
    rank_order: str = STAGES_OUTERMOST
    node_order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check what must hold of any layout, whatever the model."""
        degrees = (self.tp, self.pp, self.vpp, self.dp, self.cp, self.ep, self.etp, self.micro_batch_size)
        if min(*degrees, self.num_microbatches, self.ulysses, self.state_replicas, self.secondary_shard) < 1:
            raise ValueError("every degree of a layout is at least 1")
        if self.cp % self.ulysses:
            raise ValueError(f"ulysses = {self.ulysses} does not divide cp = {self.cp}")
        if self.stage_ranks % (self.etp * self.ep):
            raise ValueError(f"etp * ep = {self.etp * self.ep} does not divide tp * cp * dp = {self.stage_ranks}")
        if len(self.stages) != self.pp * self.vpp:
            raise ValueError(f"{len(self.stages)} stages given for pp * vpp = {self.pp * self.vpp}")
        if sorted(self.node_order) != list(range(len(self.node_order))):
            raise ValueError(f"node_order {self.node_order} does not hold every node once")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage = {self.zero_stage} is none of 0, 1, 2, 3")
        if self.offloaded_layers < 0:
            raise ValueError(f"offloaded_layers = {self.offloaded_layers} is below 0")

    @property
    def stage_ranks(self) -> int:
        """Return the GPUs of one pipeline rank."""
        return self.tp * self.cp * self.dp

    @property
    def world_size(self) -> int:
        """Return the number of GPUs."""
        return self.stage_ranks * self.pp

    @property
    def edp(self) -> int:
        """Return the ranks that hold the same routed experts."""
        return self.stage_ranks // (self.etp * self.ep)

    @property
    def offloaded_fraction(self) -> float:
        """Return the part of the optimizer's states that lies in host memory."""
        return 0.0 if self.offload is None else self.offload.optimizer_fraction

    @property
    def uses_hosts(self) -> bool:
        """Return whether something lies in host memory."""
        return self.offload is not None or self.offloaded_layers > 0 or bool(self.offloaded_modules)

    @property
    def parameter_offload(self) -> int:
        """Return where each rank's share of the weights lies."""
        if self.offload is None or not self.offload.parameters:
            return GPU_WEIGHTS
        return DRIVE_WEIGHTS if self.offload.parameter_drives else HOST_WEIGHTS

    @property
    def parameters_offloaded(self) -> bool:
        """Return whether each rank's share of the weights lies away from the GPU, in host memory or on drives."""
        return self.parameter_offload != GPU_WEIGHTS

    @property
    def uses_drives(self) -> bool:
        """Return whether states or weights lie on the drives of their node."""
        return self.drive_offload != ON_HOSTS or self.parameter_offload == DRIVE_WEIGHTS

    @property
    def drive_offload(self) -> int:
        """Return how drives take part in the optimizer step."""
        if self.offload is None or not self.offload.drives:
            return ON_HOSTS
        return PIPELINED if self.offload.overlapped else IN_TURN

    @property
    def ring(self) -> int:
        """Return the part of cp that passes keys and values round."""
        return self.cp // self.ulysses

    @property
    def cp_kind(self) -> ContextKind | None:
        """Return how attention crosses the context-parallel ranks; None when there is one."""
        if self.cp == 1:
            return None
        if self.ulysses == 1:
            return ContextKind.RING
        return ContextKind.ULYSSES if self.ring == 1 else ContextKind.ULYSSES_RING

    @property
    def global_batch_size(self) -> int:
        """Return the sequences of one optimizer step."""
        return self.micro_batch_size * self.num_microbatches * self.dp

    def chunks(self, pipeline_rank: int) -> tuple[Stage, ...]:
        """Return the virtual stages of one pipeline rank, first chunk first."""
        return self.stages[pipeline_rank :: self.pp]

    @property
    def stage_distance(self) -> int:
        """Return how far apart a rank and its like on the next pipeline rank are."""
        return self.tp * self.cp if self.rank_order == REPLICAS_OUTERMOST else self.stage_ranks

    @property
    def replica_distance(self) -> int:
        """Return how far apart a rank and its like in the next model replica are."""
        return self.tp * self.cp * (self.pp if self.rank_order == REPLICAS_OUTERMOST else 1)

    def layer_recomputes(self, stage: Stage) -> tuple[Recompute, ...]:
        """Return what is recomputed of each decoder layer of a virtual stage."""
        recompute = self.recompute
        if recompute.num_layers is None:
            held = range(stage.first_layer, stage.first_layer + stage.num_layers)
            return tuple(recompute.of_layer(layer) for layer in held)
        whole, nothing = (Recompute(granularity=granularity) for granularity in (Granularity.FULL, Granularity.NONE))
        return tuple(whole if index < recompute.num_layers else nothing for index in range(stage.num_layers))

    def first_global_rank(self, pipeline_rank: int) -> int:
        """Return the lowest global rank of one pipeline rank."""
        return pipeline_rank * self.stage_distance


def degrees_text(layout: Layout) -> str:
    """Return the degrees of a layout in words; those that most layouts do not have only where they are above 1."""
    parts = [f"tp {layout.tp}"]
    if layout.cp > 1:
        parts.append(f"cp {layout.cp} {layout.cp_kind}")
    parts += [f"pp {layout.pp}", f"dp {layout.dp}"]
    parts += [f"{name} {degree}" for name, degree in (("ep", layout.ep), ("etp", layout.etp)) if degree > 1]
    return ", ".join(parts)


def stages_from_counts(layers_per_stage: tuple[int, ...]) -> tuple[Stage, ...]:
    """Return virtual stages that hold these many decoder layers each, embedding first and head last."""
    first_layers = accumulate(layers_per_stage, initial=0)
    last = len(layers_per_stage) - 1
    return tuple(
        stage_of(first_layer, num_layers, index == 0, index == last)
        for index, (first_layer, num_layers) in enumerate(zip(first_layers, layers_per_stage, strict=False))
    )


@lru_cache(maxsize=1 << 14)
def stage_of(first_layer: int, num_layers: int, has_embedding: bool, has_head: bool) -> Stage:  # noqa: FBT001 - a key
    """Return a virtual stage; a search asks for the same ones in one split after another."""
    return Stage(first_layer=first_layer, num_layers=num_layers, has_embedding=has_embedding, has_head=has_head)


def even_counts(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """Return layers per stage as even as possible, the first and the last stage light."""
    fewest, more = divmod(num_layers, num_stages)
    first = (num_stages - more) // 2
    return tuple(fewest + (first <= stage < first + more) for stage in range(num_stages))
