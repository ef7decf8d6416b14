"""A plan's JSON form, both ways.

The form is stable and versioned: `schema_version` rises when a key changes its meaning or goes away. What a layout does
not have (`offload`) is null; `offloaded_layers`, `offloaded_modules`, `host_memory` and `drive_memory` are there where
something is offloaded; what only nodes that differ have (`node_order`, `on_nodes`, `unequal`) is there only for them,
and `expert_loads`, what the busiest rank gets over the mean in each layer with experts, where the routing was given;
with `least_expert_loads`, what no order of the experts has less than, where orders were looked for, and
`expert_loads_in_order` and `experts_in_order`, loads, step time and peak memory without the order, where experts are
reordered. What follows from other keys (`cp_kind`, `edp`, `band`, `could_swap`, `days_to_train`, `cost_to_train`,
`joules_to_train`, the three of loads) is there for readers, and must agree when the file is read back. What is asked
for beside a plan (`node_choice`, `pareto`, `spare`, `schedules`, `token_swaps`, `robust`) is there where it was asked
for. Files of versions that knew no `certainty` and no `joules_to_train` are read too. A file holds its inputs in full,
so it is enough to emit, explain and check the plan.

    plan_from_document(parse_document(plan_to_text(plan), file="plan.json")) == plan

holds for every plan whose memory lines are grouped by rank and phase.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby

from planner.documents import Data, Document, Node
from planner.documents.document import format_path
from planner.errors import InputError
from planner.layout import Layout, Recompute
from planner.plans.choices import Degraded, Front, Loss, NodeChoice, Robustness, SlowCase, Spare
from planner.plans.plan import SCHEMA_VERSION, Certainty, Infeasible, MemoryLine, Plan, PlannedLayout
from planner.requests.routing import Routing
from planner.schema.plan_file import PlanFile
from planner.schema.translate import Path, all_of, validated
from profiles.hardware import Cluster

_POSITIVE = frozenset(
    {
        "bytes_per_second",
        "chunk",
        "chunk_size",
        "count",
        "dense_flops_per_second",
        "experts_per_token",
        "global_batch_size",
        "gpus_per_node",
        "groups_per_token",
        "head_dim",
        "hidden_size",
        "host_bytes_per_second",
        "intermediate_size",
        "key_head_dim",
        "kv_lora_rank",
        "latent_size",
        "lengths",
        "max_position_embeddings",
        "memory_bytes",
        "memory_bytes_per_second",
        "norm_epsilon",
        "num_attention_heads",
        "num_compute_units",
        "num_experts",
        "num_gpus",
        "num_groups",
        "num_heads",
        "num_key_heads",
        "num_key_value_heads",
        "num_modules",
        "num_nodes",
        "num_value_heads",
        "q_lora_rank",
        "rank",
        "routing_skew",
        "seq_len",
        "state_size",
        "tokens_to_train",
        "top_k",
        "v_head_dim",
        "value_head_dim",
        "vocab_size",
        "window",
    }
)
"""Keys of the inputs that hold positive numbers only; no number of the inputs is negative."""

_KINDS = frozenset({"mixer", "feed_forward"})
"""Keys of the model that hold one of several kinds of mapping, by its `kind`."""

WHY_NOT = "why_not"
"""Answers to questions that were asked beside a plan: printed behind it, and not read back."""

_ASKED_BESIDE = frozenset(
    {
        "deadline_days",
        "drive_offload",
        "node_counts",
        "of_experts",
        "offloaded_modules",
        "orders",
        "parameter_drives",
        "placement",
        "routing",
        "source_fractions",
    }
)
"""Parts of a request, and answers to them, that most plans have not."""

_OF_FEW_CLUSTERS = frozenset({"calibration", "nvme_write_bytes_per_second", "profile", "unequal"})
"""What most clusters have not, and are not said to have."""

_EDITED = "Plan again; a plan file is not edited by hand."


def plan_from_document(document: Document) -> Plan:
    """Return the plan that a file holds."""
    _check_kinds(document)
    data = document.data
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key != WHY_NOT}
    text = json.dumps(data)
    # JSON mode turns text into enums and lists into tuples, and nothing else.
    file = validated(lambda: PlanFile.model_validate_json(text), model=PlanFile, document=document)
    _check_inputs(document)
    plan = file.to_plan()
    run = plan.whole_run
    for name, stored, derived in (
        ("days_to_train", file.days_to_train, plan.days_to_train),
        ("cost_to_train", file.cost_to_train, plan.cost_to_train),
        ("joules_to_train", file.joules_to_train, run.joules if run and file.joules_to_train is not None else None),
    ):
        same = stored == derived if stored is None or derived is None else math.isclose(stored, derived, rel_tol=1e-9)
        if not same:
            raise InputError(
                f"`{name}` = {stored} does not follow from the best plan, which gives {derived}.",
                location=document.locate((name,)),
                hint=_EDITED,
            )
    _check_beside(document, plan_to_json(plan))
    return plan


def _check_beside(document: Document, said: Mapping[str, Data]) -> None:
    """Refuse answers beside the plan of which a part does not follow from the rest."""
    errors = [
        InputError(
            f"`{name}` holds a number that does not follow from the others.",
            location=document.locate((name,)),
            hint=_EDITED,
        )
        for name in ("node_choice", "pareto", "spare", "robust")
        if (node := document.node((name,))) is not None and node.data() != said.get(name)
    ]
    if errors:
        raise all_of(errors)


def plan_to_text(plan: Plan) -> str:
    """Return the bytes of a plan file, equal for equal plans."""
    return json.dumps(plan_to_json(plan), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plan_to_json(plan: Plan) -> dict[str, Data]:
    """Return the plan as plain data, in the order that files keep; answers that were not asked for are left out."""
    run = plan.whole_run
    return {
        "schema_version": SCHEMA_VERSION,
        "target": plan.target.value,
        "status": plan.status.value,
        "objective": plan.objective.value,
        "bound": plan.bound,
        "gap": plan.gap,
        "search": as_json(plan.search),
        "plans": [_planned_layout(planned, plan) for planned in plan.plans],
        "baseline": _planned_layout(plan.baseline, plan) if plan.baseline else None,
        "infeasible": _infeasible(plan.infeasible, plan) if plan.infeasible else None,
        "certainty": _certainty(plan.certainty, plan.plans) if plan.certainty else None,
        "days_to_train": plan.days_to_train,
        "cost_to_train": plan.cost_to_train,
        **({} if run is None else {"joules_to_train": run.joules}),
        **({} if plan.node_choice is None else {"node_choice": _node_choice(plan, plan.node_choice)}),
        **({} if plan.front is None else {"pareto": _front(plan.front)}),
        **({} if plan.spare is None else {"spare": _spare(plan.spare)}),
        **({} if plan.schedules is None else {"schedules": as_json(plan.schedules)}),
        **({} if plan.token_swapping is None else {"token_swaps": as_json(plan.token_swapping)}),
        **({} if plan.robustness is None else {"robust": _robustness(plan.robustness)}),
        "inputs": {
            "model": as_json(plan.model),
            "cluster": cluster_to_json(plan.cluster),
            "request": as_json(plan.request),
        },
    }


def _node_choice(plan: Plan, choice: NodeChoice) -> dict[str, Data]:
    rows: list[Data] = []
    for count in choice.counts:
        seconds = count.step_seconds
        run = None if seconds is None else plan.run_with(seconds, num_nodes=count.num_nodes)
        rows.append(
            {
                "num_nodes": count.num_nodes,
                "verdict": count.verdict.value,
                "step_seconds": seconds,
                "bound_seconds": count.bound_seconds,
                "days_to_train": None if run is None else run.days,
                "cost_to_train": None if run is None else run.cost,
                "joules_to_train": None if run is None else run.joules,
            }
        )
    return {"num_offered": choice.num_offered, "proven": choice.proven, "counts": rows}


def _front(front: Front) -> dict[str, Data]:
    points: list[Data] = [
        {
            "layout": _layout(point.layout),
            "step_seconds": point.step_seconds,
            "peak_memory_bytes": point.peak_memory_bytes,
            "limit_bytes": point.limit_bytes,
            "bound_seconds": point.bound_seconds,
            "gap": point.gap,
        }
        for point in front.points
    ]
    return {
        "step_bytes": front.step_bytes,
        "open_below_bytes": front.open_below_bytes,
        **({} if front.of_bytes is None else {"of_bytes": front.of_bytes}),
        "points": points,
    }


def _spare(spare: Spare) -> dict[str, Data]:
    return {
        "num_lost": spare.num_lost,
        "replanned": _degraded(spare.replanned) if spare.replanned else None,
        "reason": spare.reason,
        "proven": spare.proven,
        "kept": [
            {
                "index": entry.index,
                "degraded": _degraded(entry.degraded) if entry.degraded else None,
                "reason": entry.reason,
            }
            for entry in spare.kept
        ],
        **({} if not spare.losses else {"losses": [_loss(loss) for loss in spare.losses]}),
    }


def _loss(loss: Loss) -> dict[str, Data]:
    return {
        "nodes": list(loss.nodes),
        "num_alike": loss.num_alike,
        "left": list(loss.left),
        "replanned": _degraded(loss.replanned) if loss.replanned else None,
        "reason": loss.reason,
        "proven": loss.proven,
    }


def _robustness(robustness: Robustness) -> dict[str, Data]:
    return {
        "fastest": _layout(robustness.fastest),
        "worst_loss": robustness.worst(0).loss_P[0],
        "least_loss": robustness.least_loss,
        "uneven_least_loss": robustness.uneven_least_loss,
        "cases": [_slow_case(case) for case in robustness.cases],
    }


def _slow_case(case: SlowCase) -> dict[str, Data]:
    return {
        "slow": case.slow,
        "factor": case.factor,
        "source": case.source,
        "best_seconds": case.best_seconds,
        "bound_seconds": case.bound_seconds,
        "fastest_seconds": case.fastest_seconds,
        "fastest_loss": case.fastest_loss,
        "step_seconds": list(case.seconds_P),
        "losses": list(case.loss_P),
    }


def _degraded(degraded: Degraded) -> dict[str, Data]:
    return {
        "num_nodes": degraded.num_nodes,
        "layout": _layout(degraded.layout),
        "step_seconds": degraded.step_seconds,
        "lost_fraction": degraded.lost_fraction,
    }


def cluster_to_json(cluster: Cluster) -> Data:
    """Return the cluster; how nodes differ and what was measured are said only where they do and it was."""
    return {
        field.name: as_json(getattr(cluster, field.name))
        for field in fields(cluster)
        if field.name not in _OF_FEW_CLUSTERS or getattr(cluster, field.name) is not None
    }


def _certainty(certainty: Certainty, plans: Sequence[PlannedLayout]) -> dict[str, Data]:
    return {
        "half_width": certainty.half_width,
        "source": certainty.source,
        "ratio_half_width": certainty.ratio_half_width,
        "ratio_source": certainty.ratio_source,
        "could_swap": list(certainty.could_swap(plans)),
    }


def _infeasible(infeasible: Infeasible, plan: Plan) -> dict[str, Data]:
    return {
        "binding": infeasible.binding,
        "shortfall_bytes": infeasible.shortfall_bytes,
        "nearest": _planned_layout(infeasible.nearest, plan) if infeasible.nearest else None,
        "relaxations": [as_json(relaxation) for relaxation in infeasible.relaxations],
    }


def _planned_layout(planned: PlannedLayout, plan: Plan) -> dict[str, Data]:
    memory, memory_sources = _memory(planned.memory)
    band: Data = None
    if plan.certainty is not None:
        band = dict(zip(("low_seconds", "high_seconds"), plan.certainty.band_seconds(planned), strict=True))
    routing = plan.request.workload.routing
    return {
        "layout": _layout(planned.layout),
        "step_seconds": planned.step_seconds,
        "reevaluated_step_seconds": planned.reevaluated_step_seconds,
        "lower_bound_seconds": planned.lower_bound_seconds,
        "tokens_per_second_per_gpu": planned.tokens_per_second_per_gpu,
        "mfu": planned.mfu,
        "peak_memory_bytes": planned.peak_memory_bytes,
        "memory_limit_bytes": planned.memory_limit_bytes,
        "memory": memory,
        **({} if planned.host_memory is None else {"host_memory": as_json(planned.host_memory)}),
        **({} if planned.drive_memory is None else {"drive_memory": as_json(planned.drive_memory)}),
        "time": {line.term: line.seconds for line in planned.time},
        "sources": {**memory_sources, **{f"time.{line.term}": line.source for line in planned.time}},
        "assumptions": list(planned.assumptions),
        "band": band,
        **({"on_nodes": as_json(planned.on_nodes)} if planned.on_nodes else {}),
        **_experts(planned, routing),
        **({} if planned.source_fractions is None else {"source_fractions": as_json(planned.source_fractions)}),
    }


def _experts(planned: PlannedLayout, routing: Routing | None) -> dict[str, Data]:
    """Return the load of each layer's busiest rank, at least in any order, and in the checkpoint's where that differs.

    All but `experts_in_order` follows from the routing.
    """
    if routing is None:
        return {}
    ep, before = planned.layout.ep, planned.experts_in_order
    least = routing.least_loads(ep)
    found: dict[str, Data] = {"expert_loads": as_json(routing.loads(ep))}
    if least is not None:
        found["least_expert_loads"] = as_json(least)
    if before is not None:
        found["expert_loads_in_order"] = as_json(routing.in_order.loads(ep))
        found["experts_in_order"] = as_json(before)
    return found


def _layout(layout: Layout) -> dict[str, Data]:
    return {
        "tp": layout.tp,
        "sequence_parallel": layout.sequence_parallel,
        "pp": layout.pp,
        "vpp": layout.vpp,
        "cp": layout.cp,
        "ulysses": layout.ulysses,
        "cp_kind": layout.cp_kind.value if layout.cp_kind else None,
        "state_exchange": layout.state_exchange,
        "ep": layout.ep,
        "etp": layout.etp,
        "edp": layout.edp,
        "dp": layout.dp,
        "zero_stage": layout.zero_stage,
        "state_replicas": layout.state_replicas,
        "secondary_shard": layout.secondary_shard,
        "micro_batch_size": layout.micro_batch_size,
        "num_microbatches": layout.num_microbatches,
        "schedule": layout.schedule.value,
        "recompute": _recompute(layout.recompute),
        "offload": as_json(layout.offload),
        **({"offloaded_layers": layout.offloaded_layers} if layout.offloaded_layers else {}),
        **({"offloaded_modules": list(layout.offloaded_modules)} if layout.offloaded_modules else {}),
        "overlap": as_json(layout.overlap),
        "rank_order": layout.rank_order,
        **({"node_order": list(layout.node_order)} if layout.node_order else {}),
        "stages": as_json(layout.stages),
    }


def _recompute(recompute: Recompute) -> dict[str, Data]:
    """Return what is recomputed; `layers`, runs of layers with one choice, only where each layer has its own."""
    said: dict[str, Data] = {
        "granularity": recompute.granularity.value,
        "modules": list(recompute.modules),
        "num_layers": recompute.num_layers,
    }
    if recompute.is_per_layer:
        said["layers"] = [
            {"count": len(list(run)), "granularity": choice.granularity.value, "modules": list(choice.modules)}
            for choice, run in groupby(recompute.layers)
        ]
    return said


def _memory(lines: Sequence[MemoryLine]) -> tuple[dict[str, Data], dict[str, Data]]:
    """Return the ledger as rank -> phase -> term -> bytes, and its sources.

    A term's source is said once, as `memory.<term>`; a line whose source differs from it says its own as
    `memory.<rank>.<phase>.<term>`.
    """
    ledger: dict[str, dict[str, dict[str, Data]]] = {}
    sources: dict[str, Data] = {}
    for line in lines:
        terms = ledger.setdefault(str(line.rank), {}).setdefault(line.phase.value, {})
        assert line.term not in terms, f"{line.term} stands twice in the ledger of rank {line.rank}, {line.phase}"
        terms[line.term] = line.num_bytes
        if sources.setdefault(f"memory.{line.term}", line.source) != line.source:
            sources[f"memory.{line.rank}.{line.phase}.{line.term}"] = line.source
    return {rank: dict(phases) for rank, phases in ledger.items()}, sources


def as_json(value: object) -> Data:
    """Return frozen dataclasses, enums, tuples and mappings as plain data; mappings sorted by key.

    A deadline, numbers of nodes, modules on the hosts, the routing and a placement of experts stand there only where
    they were given.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(value[key]) for key in sorted(value)}
    if isinstance(value, tuple):
        return [as_json(item) for item in value]
    assert is_dataclass(value), f"{type(value).__name__} has no JSON form"
    parts = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: as_json(part) for name, part in parts.items() if part is not None or name not in _ASKED_BESIDE}


def _check_kinds(document: Document) -> None:
    """Refuse parts of the model without their kind: it decides what else is in them."""
    errors = [
        InputError(f"`kind` is missing in `{format_path(path)}`.", location=document.locate(path), hint=_EDITED)
        for path, content in _contents(document.node(("inputs", "model")), ("inputs", "model"))
        if path[-1] in _KINDS and isinstance(content, dict) and "kind" not in content
    ]
    if errors:
        raise all_of(errors)


def _check_inputs(document: Document) -> None:
    """Refuse quantities of the inputs that are negative, or zero and cannot be."""
    errors = [
        InputError(f"`{path[-1]}` = {content} cannot be.", location=document.locate(path), hint=_EDITED)
        for path, content in _contents(document.node(("inputs",)), ("inputs",))
        if isinstance(content, int | float)
        and not isinstance(content, bool)
        and (content < 0 or (content == 0 and not _POSITIVE.isdisjoint(path)))
    ]
    if errors:
        raise all_of(errors)


def _contents(node: Node | None, path: Path) -> Iterator[tuple[Path, object]]:
    """Return what stands at `path` and at every path below it."""
    content = node.content if node is not None else None
    yield path, content
    if isinstance(content, dict):
        for key, child in content.items():
            yield from _contents(child, (*path, key))
    elif isinstance(content, list):
        for index, child in enumerate(content):
            yield from _contents(child, (*path, index))
