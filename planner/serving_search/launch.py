"""The files that start a serving plan: each pool's, what starts on which node, the router, what measures it."""

import json
import math
from collections.abc import Mapping

import numpy as np

from planner.emit.vllm_bench import BENCH_FILE, Door, bench_script
from planner.emit.vllm_router import ROUTER_FILE, ROUTER_PORT, router_script
from planner.emit.vllm_start import START_FILE, Standing, start_script
from planner.errors import BrokenPromiseError
from planner.experts.emit import MAP, SGLANG_FILE, location_text, placed_in_model
from planner.experts.written import slots_of
from planner.serving.files import serving_files
from planner.serving_plans.layout import Role
from planner.serving_plans.plan import Deployment, ServePlan


def serve_files(plan: ServePlan) -> Mapping[str, str]:
    """Return the text of every file that starts a plan, by name.

    Raises:
        InputError: Its pools cannot work together.
        BrokenPromiseError: A file says another engine than the plan.
    """
    files: dict[str, str] = {}
    doors: list[Door] = []
    for deployment in plan.deployments:
        files |= serving_files(deployment.layout)
        files |= _locations(plan, deployment)
        doors += _doors(deployment)
    if doors:
        standings = [
            Standing(pool=entry.pool, cluster=entry.cluster, is_split=deployment.layout.is_split)
            for deployment in plan.deployments
            for entry in deployment.pools
        ]
        num_nodes = {cluster.name: cluster.num_nodes for cluster in plan.clusters}
        files[START_FILE] = start_script(standings, num_nodes)
        if any(standing.is_split for standing in standings):
            files[ROUTER_FILE] = router_script(standings, num_nodes)
        model = plan.deployments[0].layout.model
        files[BENCH_FILE] = bench_script(model, plan.request.workload, doors)
    return files


def _doors(deployment: Deployment) -> list[Door]:
    """Return the addresses of a deployment: every engine's own, or the router in front of a split."""
    if deployment.layout.is_split:
        served = deployment.served[0]
        under_way = math.ceil(deployment.requests_per_second * served.e2e.mean)
        return [
            Door(
                name="split",
                count=1,
                requests_per_second=deployment.requests_per_second,
                concurrency=max(1, under_way),
                port=ROUTER_PORT,
            )
        ]
    return [
        Door(
            name=entry.pool.name,
            count=entry.pool.replicas,
            requests_per_second=entry.requests_per_second,
            concurrency=max(1, round(entry.batch * entry.pool.shape.dp)),
        )
        for entry in deployment.pools
        if entry.pool.role is Role.BOTH
    ]


def _locations(plan: ServePlan, deployment: Deployment) -> Mapping[str, str]:
    """Return where the experts of each pool stand, for pools that keep copies, read back before it is written."""
    routing = plan.request.workload.routing
    found: dict[str, str] = {}
    for entry in deployment.pools:
        if entry.placement is None or routing is None:
            continue
        name, shape = f"{entry.pool.name}-{SGLANG_FILE}", entry.pool.shape
        counted = slots_of(entry.placement, num_ranks=shape.tp * shape.pcp * shape.dp)
        whole = placed_in_model(counted, routing.layers, plan.model.num_layers)
        found[name] = location_text(whole)
        said = slots_of([",".join(map(str, row)) for row in json.loads(found[name])[MAP]], num_ranks=whole.shape[1])
        if not np.array_equal(said, whole):
            raise BrokenPromiseError(f"{name} says another placement than the plan")
    return found
