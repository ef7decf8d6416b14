"""Everything that is looked at: every engine that fits, on every kind of GPU, and what those of one kind share."""

from collections import Counter
from dataclasses import dataclass

from planner.models.specs import ModelSpec
from planner.serving.engines import engine_named
from planner.serving.formats import formats_of
from planner.serving.prices import ServingPrices
from planner.serving_plans.request import ServeRequest
from planner.serving_search.candidates import Candidate, DraftGround, Ground, candidates_of
from planner.serving_search.shapes import engine_shapes
from planner.serving_search.traffic import mean_of
from profiles.hardware import Cluster

ENGINE = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Everything that is looked at.

    Args:
        grounds: Of each kind of GPU.
        candidates: Engines that fit.
        considered: Shapes before any rule.
        legal: Shapes that break none and fit.
        pruned: Shapes that were left out, by reason.
        one_node: All GPUs stand in one node.
    """

    grounds: tuple[Ground, ...]
    candidates: list[Candidate]
    considered: int
    legal: int
    pruned: Counter[str]
    one_node: bool


def field_of(model: ModelSpec, clusters: tuple[Cluster, ...], request: ServeRequest) -> Field:
    """Return every engine that fits, on every kind of GPU."""
    grounds: list[Ground] = []
    candidates: list[Candidate] = []
    pruned: Counter[str] = Counter()
    considered = legal = 0
    for index, cluster in enumerate(clusters):
        ground = ground_of(model, cluster, request, index=index)
        space = engine_shapes(model, cluster, ground.formats, request.constraints)
        considered += space.considered
        pruned += space.pruned
        grounds.append(ground)
        found = candidates_of(ground, space.shapes, pruned)
        legal += len({candidate.shape for candidate in found})
        candidates += found
    return Field(
        grounds=tuple(grounds),
        candidates=candidates,
        considered=considered,
        legal=legal,
        pruned=pruned,
        one_node=len(clusters) == 1 and clusters[0].num_nodes == 1,
    )


def ground_of(model: ModelSpec, cluster: Cluster, request: ServeRequest, *, index: int) -> Ground:
    """Return what all engines of a model on one kind of GPU share."""
    workload = request.workload
    return Ground(
        index=index,
        prices=ServingPrices(model, cluster),
        formats=formats_of(workload.quantization, model, cache=workload.kv_cache_dtype),
        engine=engine_named(ENGINE),
        request=request,
        mean=mean_of(workload),
        draft=_draft_ground(request, cluster),
    )


def _draft_ground(request: ServeRequest, cluster: Cluster) -> DraftGround | None:
    speculation = request.speculation
    if speculation is None:
        return None
    # vLLM loads a draft as its files hold it (`DraftModelProposer._create_draft_vllm_config`).
    formats = formats_of("", speculation.model, cache=request.workload.kv_cache_dtype)
    return DraftGround(prices=ServingPrices(speculation.model, cluster), formats=formats, speculation=speculation)
