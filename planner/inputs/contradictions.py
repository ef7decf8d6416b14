"""What a model, a cluster and a workload cannot be together, found before anything is searched.

Each check returns errors that point at the field of the spec to be changed.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from planner.documents import Document
from planner.errors import InputError, Location
from planner.frameworks.capabilities import CAPABILITIES, Capabilities
from planner.layout import OFFLOADABLE, ContextKind
from planner.models.blocks import MixtureOfExperts, PositionEmbedding
from planner.models.specs import ModelSpec
from planner.requests.request import OFFLOADED_LAYERS, OFFLOADED_MODULES, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import AttentionKernel, Precision
from profiles.drives import has_drives
from profiles.hardware import Cluster, Device

_NEEDED = {
    "vpp": ("interleaving", "virtual pipeline stages"),
    "ep": ("experts", "expert parallelism"),
    "etp": ("expert_tensor", "tensor parallelism of the experts alone"),
    "sequence_parallel": ("sequence_parallel", "sequence parallelism over tp"),
}
"""What of a `Capabilities` a constraint needs, and what messages call it."""


MOST_NODE_COUNTS = 256
"""Numbers of nodes that are searched for one plan. A choice: each may be a search of its own, of seconds."""


def contradictions(
    model: ModelSpec, cluster: Cluster, request: PlanRequest, document: Document
) -> Iterator[InputError]:
    """Return every contradiction between the parts of a spec."""
    yield from _sequence(model, request, document)
    for device, _ in cluster.device_counts:
        yield from _precision(device, request, document)
        yield from _attention_kernel(device, request, document)
    yield from _objective(cluster, request, document)
    yield from _pinned_sizes(cluster, request, document)
    yield from _offload(cluster, request, document)
    yield from _offloaded_layers(model, request, document)
    yield from _experts(model, request, document)
    yield from _context(request, document)
    yield from _target(request, document)


def _sequence(model: ModelSpec, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Yield a sequence beyond a learned table of positions; rotary positions have no end, and a plan names it."""
    error = length_error(model, request.workload.seq_len, document.locate(("workload", "seq_len")))
    if error is not None:
        yield error


def length_error(model: ModelSpec, seq_len: int, location: Location | None = None) -> InputError | None:
    """Return what is wrong with sequences of this length for a model, if something is."""
    longest = model.max_position_embeddings
    if seq_len <= longest or model.position_embedding is not PositionEmbedding.LEARNED:
        return None
    return InputError(
        f"`seq_len` = {seq_len} is longer than the table of positions of {model.name}: "
        f"max_position_embeddings = {longest}.",
        location=location,
        hint="Shorten it, or describe the model with the max_position_embeddings it will have.",
    )


def _precision(device: Device, request: PlanRequest, document: Document) -> Iterator[InputError]:
    error = precision_error(device, request.workload.precision, document.locate(("workload", "precision")))
    if error is not None:
        yield error


def precision_error(device: Device, precision: Precision, location: Location | None = None) -> InputError | None:
    """Return what keeps a precision from running on a GPU, if anything does; `location` is where the user chose it."""
    lacking = _lacks(device, precision)
    if lacking is None:
        return None
    usable = [known.value for known in Precision if _lacks(device, known) is None]
    return InputError(
        f"`precision` = {precision} does not run on {device.name}: {lacking}.",
        location=location,
        hint=f"Usable on this GPU: {', '.join(usable) or 'none'}.",
    )


def _lacks(device: Device, precision: Precision) -> str | None:
    """Return what the GPU lacks for a precision, if anything.

    The fp8 recipes as Transformer Engine supports them (`check_mxfp8_support` and `check_fp8_block_scaling_support`
    in its `pytorch/quantization.py`): MXFP8 on compute capability 10.x, block scaling from 9.0. On AMD, MXFP8 needs
    CDNA 4 (gfx950).
    """
    if precision.gemm_dtype.value not in device.dense_flops_per_second:
        return f"it has no {precision.gemm_dtype.value} matrix units"
    capability = _capability(device)
    if precision is Precision.FP8_MXFP8:
        if capability is not None and not (10, 0) <= capability < (12, 0):
            return "MXFP8 needs compute capability 10.x (Blackwell data-centre GPUs)"
        if capability is None and device.architecture != "cdna4":
            return "MXFP8 needs CDNA 4"
    if precision is Precision.FP8_BLOCKWISE and (capability is None or capability < (9, 0)):
        return "block scaling needs an NVIDIA GPU of compute capability 9.0 or more"
    return None


def _attention_kernel(device: Device, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Return an error for a fused attention kernel on Volta.

    FlashAttention-2 and cuDNN's fused attention in Transformer Engine start at compute capability 8.0.
    """
    kernel = request.workload.attention_kernel
    capability = _capability(device)
    if kernel is not AttentionKernel.UNFUSED and capability is not None and capability < (8, 0):
        yield InputError(
            f"`attention_kernel` = {kernel} does not run on {device.name}: it needs compute capability 8.0 (Ampere).",
            location=document.locate(("workload", "attention_kernel")),
            hint="Give attention_kernel: unfused.",
        )


def _objective(cluster: Cluster, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Yield what the objective or the deadline needs and is not given, and numbers of nodes that there are not."""
    objective = request.objective
    place = document.locate(("objective",))
    if objective is Objective.COST and cluster.price_per_gpu_hour is None:
        yield InputError(
            "`objective` = cost needs the price of a GPU, which the cluster does not give.",
            location=place,
            hint="Add price_per_gpu_hour to the cluster.",
        )
    if objective is Objective.ROBUST:
        yield from _robust(cluster, request, document)
    if objective is Objective.FEWEST_NODES and request.deadline_days is None:
        yield InputError(
            "`objective` = fewest-nodes needs a deadline that the nodes have to meet.",
            location=place,
            hint="Add deadline_days: 30, or another number of days.",
        )
    if request.workload.tokens_to_train is None:
        budget = "Add tokens_to_train to the workload, such as 15T."
        if objective in (Objective.DAYS, Objective.COST, Objective.ENERGY):
            yield InputError(
                f"`objective` = {objective} speaks of a whole run, and the workload has no token budget.",
                location=place,
                hint=budget,
            )
        if request.deadline_days is not None:
            yield InputError(
                "`deadline_days` speaks of a whole run, and the workload has no token budget.",
                location=document.locate(("deadline_days",)),
                hint=budget,
            )
    if request.chooses_nodes and cluster.unequal is not None:
        yield InputError(
            "the number of nodes cannot be chosen where nodes differ: a number does not say which of them are taken,"
            " and which are the best few depends on the layout.",
            location=place if request.node_counts is None else document.locate(("node_counts",)),
            hint="Plan each choice that you have by itself: change `nodes` of the cluster's groups.",
        )
        return
    counts = request.counts_of(cluster.num_nodes)
    if not counts:
        yield InputError(
            f"`node_counts` allows none of the 1 to {cluster.num_nodes} nodes of the cluster.",
            location=document.locate(("node_counts",)),
            hint="The cluster gives the most nodes that may be chosen: raise cluster.nodes, or allow fewer.",
        )
    elif len(counts) > MOST_NODE_COUNTS:
        yield InputError(
            f"{len(counts):,} numbers of nodes are allowed; at most {MOST_NODE_COUNTS} are searched.",
            location=document.locate(("objective",) if request.node_counts is None else ("node_counts",)),
            hint=f"List those that you could use, such as node_counts: {_examples(counts)}.",
        )


def _robust(cluster: Cluster, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Yield what a robust plan cannot be asked for beside."""
    place = document.locate(("objective",))
    if cluster.unequal is not None:
        yield InputError(
            "`objective` = robust is for equal nodes: where nodes differ, one order of them would have to be the best"
            " against every case at once, and orders are searched for one case.",
            location=place,
            hint="Plan by step-time, and hold the runners-up against each other with verify/.",
        )
    if request.node_counts is not None or request.deadline_days is not None:
        yield InputError(
            "`objective` = robust weighs layouts on one number of nodes, by what they lose and not by their time.",
            location=place,
            hint="Find the number of nodes by another objective; then give it as cluster.nodes, without node_counts"
            " and deadline_days.",
        )


def _offload(cluster: Cluster, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Yield what is to go to hosts of nodes that differ, and weights that are to go alone."""
    constraints = request.constraints
    for name, what, asked in (
        ("optimizer_offload", "states", any(constraints.optimizer_offload or ())),
        ("parameter_offload", "weights", constraints.parameter_offload is True),
        ("drive_offload", "states", constraints.drive_offload is True),
        ("parameter_drives", "weights", constraints.parameter_drives is True),
        (OFFLOADED_LAYERS, "activations", not constraints.admits(OFFLOADED_LAYERS, 0)),
        (OFFLOADED_MODULES, "activations", constraints.asks_modules),
    ):
        if cluster.unequal is not None and asked:
            yield InputError(
                f"`{name}` asks for {what} on the hosts, which is not searched where nodes differ.",
                location=document.locate(("constraints", name)),
                hint="Leave it out, or describe equal nodes.",
            )
    _, core, projection, *_ = OFFLOADABLE
    named = constraints.offloaded_modules or ()
    if projection in named and core not in named:
        yield InputError(
            f"`{OFFLOADED_MODULES}` names {projection} without {core}, whose backward pass needs its input.",
            location=document.locate(("constraints", OFFLOADED_MODULES)),
            hint=f"Name {core} too.",
        )
    parts = constraints.optimizer_offload
    for name, what, asked in (
        ("parameter_offload", "weights on the hosts", constraints.parameter_offload is True),
        ("drive_offload", "states on drives", constraints.drive_offload is True),
        ("parameter_drives", "weights on drives", constraints.parameter_drives is True),
    ):
        if asked and parts is not None and 1.0 not in parts:
            yield InputError(
                f"`{name}` asks for {what}, and `optimizer_offload` forbids all states there.",
                location=document.locate(("constraints", name)),
                hint="Add 1 to `optimizer_offload`, or leave it out.",
            )
    yield from _drives(cluster, constraints, document)


def _drives(cluster: Cluster, constraints: Constraints, document: Document) -> Iterator[InputError]:
    """Yield what is to go to drives of which nothing is known, and weights that are to be in two places."""
    for name, what, asked in (
        ("drive_offload", "states on drives", constraints.drive_offload),
        ("parameter_drives", "weights on drives", constraints.parameter_drives),
    ):
        if asked and not has_drives(cluster):
            yield InputError(
                f"`{name}` asks for {what}, and nothing says what the drives of a node hold, or how fast they are.",
                location=document.locate(("constraints", name)),
                hint="Give cluster.nvme with count, capacity and bandwidth.",
            )
    if constraints.parameter_drives and constraints.parameter_offload is not None:
        place = "in host memory" if constraints.parameter_offload else "on the GPUs"
        yield InputError(
            f"`parameter_drives` asks for weights on drives, and `parameter_offload` wants them {place}.",
            location=document.locate(("constraints", "parameter_drives")),
            hint="Give one of the two.",
        )


def _offloaded_layers(model: ModelSpec, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Yield that all layers, or more, are to keep their activations on the host: Transformer Engine takes fewer."""
    if not any(request.constraints.admits(OFFLOADED_LAYERS, count) for count in range(model.num_layers)):
        yield InputError(
            f"`{OFFLOADED_LAYERS}` allows none of 0 to {model.num_layers - 1}: of {model.num_layers} layers at least"
            " the last keeps its activations on the GPU.",
            location=document.locate(("constraints", OFFLOADED_LAYERS)),
            hint=f"Allow {model.num_layers - 1} or fewer.",
        )


def _examples(counts: Sequence[int]) -> list[int]:
    """Return a few numbers, each twice the last, up to the largest."""
    return [counts[-1] >> shift for shift in (3, 2, 1, 0)]


def _pinned_sizes(cluster: Cluster, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Return an error for pinned degrees that do not divide the GPUs, or else the batch.

    The routed experts' grid, etp ep edp pp, is over the same GPUs; edp follows from the others.
    """
    counts = request.counts_of(cluster.num_nodes)
    misfits = [_size_misfit(request, num_gpus=count * cluster.gpus_per_node) for count in counts[-MOST_NODE_COUNTS:]]
    if misfits and misfits[-1] is not None and all(misfits):
        message, culprit = misfits[-1]
        yield InputError(
            message,
            location=document.locate(("constraints", culprit)),
            hint="Change a constraint; the cluster and the batch are never changed for you.",
        )


def _size_misfit(request: PlanRequest, *, num_gpus: int) -> tuple[str, str] | None:
    """Return how pinned degrees do not divide so many GPUs, or else the batch, and which; None where they do."""
    pinned = _pinned(request)
    gpus = "the number of GPUs"
    misfit = _misfit(pinned, ("tp", "cp", "pp", "dp"), whole=num_gpus, name=gpus)
    if misfit is None:
        misfit = _misfit(pinned, ("etp", "ep", "pp", "edp"), whole=num_gpus, name=gpus)
    if misfit is None:
        factors = dict(pinned)
        if {"tp", "cp", "pp"} <= set(pinned):
            factors["dp"] = num_gpus // (pinned["tp"] * pinned["cp"] * pinned["pp"])
        names = ("dp", "micro_batch_size", "num_microbatches")
        misfit = _misfit(factors, names, whole=request.workload.global_batch_size, name="`global_batch_size`")
    return misfit


def _experts(model: ModelSpec, request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Return an error for expert parallelism without experts, or of a degree that divides no layer's experts."""
    if not model.has_experts:
        for axis in ("ep", "etp"):
            if _least(request, axis) > 1:
                yield InputError(
                    f"`{axis}` lays out routed experts, and {model.name} has none.",
                    location=document.locate(("constraints", axis)),
                    hint="Remove it.",
                )
        return
    blocks = (*model.distinct_blocks, *((model.mtp.block,) if model.mtp else ()))
    sizes = sorted(
        {block.feed_forward.num_experts for block in blocks if isinstance(block.feed_forward, MixtureOfExperts)}
    )
    allowed = _allowed(request, "ep")
    if allowed and all(any(size % ep for size in sizes) for ep in allowed):
        yield InputError(
            f"{_each('ep', allowed)} the routed experts of {model.name}: {' and '.join(str(size) for size in sizes)}.",
            location=document.locate(("constraints", "ep")),
            hint=f"Give a divisor of {math.gcd(*sizes)}.",
        )


def _context(request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Return an error where no allowed cp splits the sequences.

    A ring gives each rank two pieces, one from either end of the sequence, so that causal attention is as much work for
    every rank (`get_batch_on_this_cp_rank` of megatron-core 0.19.2); heads are exchanged with one piece too.
    """
    allowed, kinds = _allowed(request, "cp"), _context_kinds(request)
    seq_len = request.workload.seq_len
    pieces = 1 if ContextKind.ULYSSES in kinds else 2
    if allowed and all(cp > 1 and seq_len % (pieces * cp) for cp in allowed):
        factor = "" if pieces == 1 else "2 * "
        yield InputError(
            f"{_each(f'{factor}cp', tuple(pieces * cp for cp in allowed))} `seq_len` = {seq_len}.",
            location=document.locate(("constraints", "cp")),
            hint=f"{factor}cp has to divide the tokens of a sequence, which are never changed for you.",
        )


def _target(request: PlanRequest, document: Document) -> Iterator[InputError]:
    """Return an error for what is asked for and the target framework cannot run."""
    capabilities = CAPABILITIES.get(request.target)
    if capabilities is None:
        return
    constraints = request.constraints
    kinds = constraints.cp_kind or ()
    wanted = {name: _least(request, name) > 1 for name in ("vpp", "ep", "etp")}
    wanted["sequence_parallel"] = constraints.sequence_parallel is True
    for name, (capability, what) in _NEEDED.items():
        if wanted[name] and not getattr(capabilities, capability):
            able = [target for target, known in CAPABILITIES.items() if getattr(known, capability)]
            yield _lacking(capabilities, what, able, name, document)
    if kinds and not capabilities.context_kinds & set(kinds):
        able = [target for target, known in CAPABILITIES.items() if known.context_kinds & set(kinds)]
        yield _lacking(capabilities, f"context parallelism of kind {' or '.join(kinds)}", able, "cp_kind", document)


def _lacking(
    capabilities: Capabilities, what: str, able: Sequence[Target], name: str, document: Document
) -> InputError:
    return InputError(
        f"{capabilities.title} has no {what}.",
        location=document.locate(("constraints", name)),
        hint=f"Remove it, or give target: {' or '.join(able)}.",
    )


def _context_kinds(request: PlanRequest) -> frozenset[ContextKind]:
    """Return the kinds of context parallelism that a layout may have."""
    allowed = frozenset(ContextKind(kind) for kind in request.constraints.cp_kind or ContextKind)
    capabilities = CAPABILITIES.get(request.target)
    return allowed & capabilities.context_kinds if capabilities else allowed


def _allowed(request: PlanRequest, axis: str) -> tuple[int, ...]:
    """Return the values that an axis may take, where they are listed; else nothing."""
    bounds = request.constraints.degrees.get(axis)
    return bounds.allowed or () if bounds else ()


def _least(request: PlanRequest, axis: str) -> int:
    """Return the smallest degree that an axis may have."""
    bounds = request.constraints.degrees.get(axis)
    if bounds is None:
        return 1
    return min(bounds.allowed) if bounds.allowed else bounds.minimum or 1


def _each(name: str, values: Sequence[int]) -> str:
    """Return "ep 7 does not divide" or "none of ep 5, 7 divides"."""
    if len(values) == 1:
        return f"{name} {values[0]} does not divide"
    return f"None of {name} {', '.join(str(value) for value in values)} divides"


def _misfit(factors: Mapping[str, int], names: Sequence[str], *, whole: int, name: str) -> tuple[str, str] | None:
    """Return why the given factors of a whole are impossible, and the last of them; None when they are possible.

    Args:
        factors: The known factors.
        names: Every factor of the whole, known or not.
        whole: What the product of all factors is.
        name: What messages call it.
    """
    known = [factor for factor in names if factor in factors]
    product = math.prod(factors[factor] for factor in known)
    complete = len(known) == len(names)
    if product == whole or (not complete and whole % product == 0):
        return None
    formula = " * ".join(f"{factor} {factors[factor]}" for factor in known)
    total = f" = {product}" if len(known) > 1 else ""
    return f"{formula}{total} {'is not' if complete else 'does not divide'} {name} = {whole}.", known[-1]


def _pinned(request: PlanRequest) -> dict[str, int]:
    """Return the dimensions that may take one value only."""
    return {
        name: bounds.allowed[0]
        for name, bounds in request.constraints.degrees.items()
        if bounds.allowed is not None and len(bounds.allowed) == 1
    }


def _capability(device: Device) -> tuple[int, int] | None:
    if device.compute_capability is None:
        return None
    major, _, minor = device.compute_capability.partition(".")
    return int(major), int(minor or 0)
