"""Parameters that a rank should hold: by our ledger, and of models of equal layers by the specs alone."""

from collections.abc import Iterator

from planner.frameworks.capabilities import MEGATRON
from planner.layout import Layout, Stage
from planner.models.blocks import (
    Block,
    DenseFeedForward,
    FeedForward,
    MixtureOfExperts,
    Norm,
    QueryKeyNorm,
    SelfAttention,
)
from planner.models.layers import build_graph
from planner.plans.plan import Plan
from planner.ranks.placement import PlacedModel, place


def placed(plan: Plan, index: int = 0) -> PlacedModel:
    """Return the plan's model under one of its layouts."""
    model, workload = plan.model, plan.request.workload
    return place(model, build_graph(model, workload), plan.plans[index].layout, workload, MEGATRON)


def ledger_parameters(plan: Plan, pipeline_rank: int, *, index: int = 0) -> int:
    """Return what our ledger has on one rank, counted as Megatron counts.

    The balancing biases of routers are buffers there, and with prediction modules the final norm stands behind the
    last layer, which may be on another stage than the head (`TransformerBlock.has_final_layernorm_in_this_stage`).
    """
    model, layout = plan.model, plan.plans[index].layout
    trainable = False if plan.request.workload.lora is not None else None
    counted = placed(plan, index).elements(pipeline_rank, trainable=trainable).total
    norm = model.hidden_size * model.norm.num_vectors
    last = max(number for number, stage in enumerate(layout.stages) if stage.num_layers)
    for number, stage in enumerate(layout.stages):
        if number % layout.pp != pipeline_rank:
            continue
        counted -= sum(_balancing_biases(block) for block in _blocks(plan, stage))
        if model.mtp is not None and last != len(layout.stages) - 1:
            counted += norm * ((number == last) - stage.has_head)
    return counted


def ledger_expert_parameters(plan: Plan, pipeline_rank: int) -> int:
    """Return the parameters of routed experts that our ledger has on one rank."""
    return placed(plan).elements(pipeline_rank).expert


def _blocks(plan: Plan, stage: Stage) -> Iterator[Block]:
    yield from plan.model.blocks[stage.first_layer : stage.first_layer + stage.num_layers]
    if stage.has_head and plan.model.mtp is not None:
        yield from (plan.model.mtp.block,) * plan.model.mtp.num_modules


def _balancing_biases(block: Block) -> int:
    experts = block.feed_forward
    return experts.num_experts if isinstance(experts, MixtureOfExperts) and experts.router.correction_bias else 0


def _feed_forward_parameters(part: FeedForward | None, hidden: int, layout: Layout) -> int:
    """Return the parameters of a rank's feed-forward, or of its router and its experts without shared ones."""
    if isinstance(part, MixtureOfExperts):
        assert part.shared is None
        assert part.latent_size is None
        assert not part.expert.bias
        expert = part.expert.intermediate_size * hidden * (3 if part.expert.gated else 2)
        return part.num_experts * hidden + part.num_experts // layout.ep * expert // layout.etp
    assert isinstance(part, DenseFeedForward)
    fc1 = part.intermediate_size * (2 if part.gated else 1)
    biases = fc1 // layout.tp + hidden if part.bias else 0
    return (hidden * fc1 + part.intermediate_size * hidden) // layout.tp + biases


def counted_parameters(plan: Plan, pipeline_rank: int) -> int:
    """Return the parameters of one rank of a model of equal layers by arithmetic on the specs alone."""
    model, layout = plan.model, plan.best.layout
    attention, feed_forward = model.distinct_blocks[0].mixer, model.distinct_blocks[0].feed_forward
    assert isinstance(attention, SelfAttention)
    hidden, tp = model.hidden_size, layout.tp
    norm = hidden * (1 if model.norm is Norm.RMS else 2)
    qkv = attention.query_size + 2 * attention.key_value_size
    layer = (hidden * qkv + attention.query_size * hidden) // tp + _feed_forward_parameters(
        feed_forward, hidden, layout
    )
    query_key_norm = attention.qk_norm is QueryKeyNorm.HEAD
    layer += 2 * norm + (2 * attention.head_dim * (1 if model.norm is Norm.RMS else 2) if query_key_norm else 0)
    layer += qkv // tp if attention.qkv_bias else 0
    layer += hidden if attention.output_bias else 0
    rows = -(-model.vocab_size // (128 * tp)) * 128
    total = 0
    for stage in layout.chunks(pipeline_rank):
        total += stage.num_layers * layer
        total += rows * hidden + model.num_position_rows * hidden if stage.has_embedding else 0
        shared = model.tie_word_embeddings and layout.pp == 1
        total += norm + (0 if shared else rows * hidden) if stage.has_head else 0
    return total
