"""The file form of a serving plan, both ways: `plan.json` with `"kind": "serve"`.

Metrics are those of `planner.serving_plans.request`. A file holds its inputs in full, so it is enough to emit the plan.

    serve_plan_from_document(parse_document(serve_plan_to_text(plan), file="plan.json")) == plan
"""

import json
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from planner.documents import Data, Document
from planner.errors import InputError
from planner.experts.written import placement_error, slots_of
from planner.models.specs import ModelSpec
from planner.requests.routing import Routing
from planner.schema.plan import as_json, cluster_to_json
from planner.schema.strict import Strict, known_version
from planner.schema.translate import complaint, validated
from planner.serving_plans.layout import Executor, ServingLayout, check_layout
from planner.serving_plans.plan import (
    SERVE_KIND,
    SERVE_SCHEMA_VERSION,
    Composition,
    Deployment,
    ParetoPoint,
    PlannedPool,
    RankedEngine,
    Served,
    ServeInfeasible,
    ServePlan,
    ServeSearchSummary,
    ServeStatus,
    Transfer,
)
from planner.serving_plans.request import ServeRequest
from profiles.hardware import Cluster

METRICS = {
    "ttft": "Seconds from a request's arrival at the engine to its first token there; of a split plan with the transfer"
    " of the cache and the first step behind it.",
    "tpot": "(E2E - TTFT) / (output tokens - 1) of one request, in seconds.",
    "e2e": "Seconds from a request's arrival to its last token.",
    "attainment": "Part of the requests, from 0 to 1, that keep all targets at once.",
    "goodput": "Requests a second of a plan whose requests keep every target at its percentile, or in the mean.",
    "tokens_per_second_per_gpu": "Output tokens a second over the GPUs of the engines that give them.",
    "tokens_per_second_per_user": "1 / TPOT, output tokens a second of one request.",
}
"""What the metrics of a file mean; its schema says it too, and takes no other meaning."""


def _known_metrics(value: object) -> object:
    if value != METRICS:
        raise complaint(
            "`metrics` mean something else than here.",
            "This version reads serving plans whose metrics are its own; plan again.",
        )
    return value


class DeploymentFile(Strict):
    """Pools that serve requests together."""

    model: str
    executor: Executor
    connector: str | None
    requests_per_second: float
    served: tuple[Served, ...]
    transfer: Transfer | None
    pools: Annotated[tuple[PlannedPool, ...], Field(min_length=1)]

    def to_deployment(self) -> Deployment:
        """Return the deployment."""
        layout = ServingLayout(
            model=self.model,
            pools=tuple(entry.pool for entry in self.pools),
            executor=self.executor,
            connector=self.connector,
        )
        return Deployment(
            layout=layout,
            pools=self.pools,
            requests_per_second=self.requests_per_second,
            served=self.served,
            transfer=self.transfer,
        )


class ServeInputsFile(Strict):
    """What the plan was made from."""

    model: ModelSpec
    clusters: tuple[Cluster, ...]
    request: ServeRequest


class ServePlanFile(Strict):
    """A whole serving plan."""

    schema_version: Annotated[int, known_version(SERVE_SCHEMA_VERSION, "serving plans")]
    kind: Literal["serve"]
    target: Literal["vllm"]
    metrics: Annotated[dict[str, str], BeforeValidator(_known_metrics)] = Field(
        description=" ".join(f"{name}: {text}" for name, text in METRICS.items()),
        json_schema_extra={"const": {**METRICS}},
    )
    status: ServeStatus
    objective: str
    value: float | None
    bound: float | None
    num_gpus: int
    requests_per_second: float
    price_per_hour: float | None
    deployments: tuple[DeploymentFile, ...]
    compositions: tuple[Composition, ...]
    engines: tuple[RankedEngine, ...]
    pareto: tuple[ParetoPoint, ...]
    search: ServeSearchSummary
    infeasible: ServeInfeasible | None
    assumptions: tuple[str, ...]
    inputs: ServeInputsFile

    @model_validator(mode="after")
    def _status_agrees(self) -> "ServePlanFile":
        infeasible = self.status is ServeStatus.INFEASIBLE
        if infeasible != (not self.deployments) or infeasible != (self.infeasible is not None):
            raise complaint(
                f"`status` = {self.status}, but the file holds {len(self.deployments)} deployments.",
                "An infeasible result holds none and says why, every other at least one.",
                field="status",
            )
        return self

    def to_plan(self) -> ServePlan:
        """Return the plan."""
        return ServePlan(
            model=self.inputs.model,
            clusters=self.inputs.clusters,
            request=self.inputs.request,
            status=self.status,
            value=self.value,
            bound=self.bound,
            deployments=tuple(deployment.to_deployment() for deployment in self.deployments),
            compositions=self.compositions,
            engines=self.engines,
            pareto=self.pareto,
            search=self.search,
            infeasible=self.infeasible,
            assumptions=self.assumptions,
        )


def serve_plan_to_text(plan: ServePlan) -> str:
    """Return the bytes of a plan file, equal for equal plans."""
    return json.dumps(serve_plan_to_json(plan), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def serve_plan_to_json(plan: ServePlan) -> dict[str, Data]:
    """Return the plan as plain data, in the order that files keep."""
    return {
        "schema_version": SERVE_SCHEMA_VERSION,
        "kind": SERVE_KIND,
        "target": "vllm",
        "metrics": dict(METRICS),
        "status": plan.status.value,
        "objective": plan.objective.value,
        "value": plan.value,
        "bound": plan.bound,
        "num_gpus": plan.num_gpus,
        "requests_per_second": plan.requests_per_second,
        "price_per_hour": plan.price_per_hour,
        "deployments": [_deployment(deployment) for deployment in plan.deployments],
        "compositions": [as_json(entry) for entry in plan.compositions],
        "engines": [as_json(entry) for entry in plan.engines],
        "pareto": [as_json(entry) for entry in plan.pareto],
        "search": as_json(plan.search),
        "infeasible": None if plan.infeasible is None else as_json(plan.infeasible),
        "assumptions": list(plan.assumptions),
        "inputs": {
            "model": as_json(plan.model),
            "clusters": [cluster_to_json(cluster) for cluster in plan.clusters],
            "request": as_json(plan.request),
        },
    }


def _deployment(deployment: Deployment) -> dict[str, Data]:
    layout = deployment.layout
    return {
        "model": layout.model,
        "executor": layout.executor.value,
        "connector": layout.connector,
        "requests_per_second": deployment.requests_per_second,
        "served": [as_json(entry) for entry in deployment.served],
        "transfer": None if deployment.transfer is None else as_json(deployment.transfer),
        "pools": [as_json(entry) for entry in deployment.pools],
    }


def is_serve_plan(document: Document) -> bool:
    """Return whether a document is a serving plan, sound or not: by its kind, or by deployments in place of plans."""
    data = document.data
    if not isinstance(data, dict):
        return False
    return data.get("kind") == SERVE_KIND or ("deployments" in data and "plans" not in data)


def serve_plan_from_document(document: Document) -> ServePlan:
    """Return the serving plan that a file holds.

    Raises:
        InputError: It is damaged, or its pools cannot work together.
    """
    text = json.dumps(document.data)
    file = validated(lambda: ServePlanFile.model_validate_json(text), model=ServePlanFile, document=document)
    plan = file.to_plan()
    for deployment in plan.deployments:
        check_layout(deployment.layout)
    for entry in plan.pools:
        if entry.placement is not None:
            _check_placement(entry, plan.request.workload.routing, document)
    return plan


def _check_placement(entry: PlannedPool, routing: Routing | None, document: Document) -> None:
    """Raise for a placement of experts that no engine can have, or another than its settings say."""
    shape, error = entry.pool.shape, "stands there without the routing that it is for"
    if routing is not None:
        try:
            slots = slots_of(entry.placement or (), num_ranks=shape.tp * shape.pcp * shape.dp)
        except ValueError:
            error = "is no rows of experts, as many on every rank"
        else:
            error = placement_error(
                slots,
                num_layers=len(routing.layers),
                num_experts=routing.num_experts,
                redundant=entry.pool.settings.redundant_experts,
            )
    if error:
        raise InputError(
            f"The placement of pool {entry.pool.name} {error}.",
            location=document.locate(("deployments",)),
            hint="Plan again; a plan file is not edited by hand.",
        )
