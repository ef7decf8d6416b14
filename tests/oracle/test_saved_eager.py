"""What the ledger says the shipped DeepSpeed model keeps for backward, against what autograd keeps, byte by byte."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest

from planner.frameworks.capabilities import CAPABILITIES
from planner.layout import Granularity, Recompute
from planner.memory.ledger import memory_ledger
from planner.memory.saved import head_peak_bytes
from planner.models.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, QueryKeyNorm, Router
from planner.models.graph import LayerGraph, ModelGraph, Pointwise
from planner.models.layers import build_graph
from planner.models.layers.eager import LOSS_BESIDE
from planner.models.specs import BlockRun, ModelSpec, Trait
from planner.ranks.placement import place, shard_model
from planner.ranks.shard import RankLayer, shard_layer
from planner.ranks.sharding import Sharding
from planner.requests.request import Constraints, Objective, PlanRequest, Target
from planner.requests.workload import AttentionKernel, Precision, TrainWorkload
from planner.search.search import search
from tests.builders import tiny_dense_model, tiny_workload, two_node_cluster
from tests.emitted.deepspeed_plans import ATTENTION, EXPERTS, GPT, LATENT, LLAMA, swiglu
from tests.oracle.planned_modules import (
    context_of,
    facts_of,
    in_bf16,
    kept_by,
    peak_allocated_bytes,
    planned_block,
    planned_model,
)
from tests.oracle.torch_kernels import BF16, Tensor, torch

SEQ_LEN = 32
FUSED, UNFUSED = AttentionKernel.FUSED, AttentionKernel.UNFUSED
GATED = {kind: DenseFeedForward(intermediate_size=96, gated=True, activation=kind) for kind in Activation}
PLAIN = {kind: DenseFeedForward(intermediate_size=96, gated=False, activation=kind) for kind in Activation}
PLAIN_ROUTER = Router(normalized=False, correction_bias=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layer of the shipped model.

    Args:
        block: The layer.
        model: What it is a layer of.
        kernel: Attention's kernel.
        hidden_dropout: Dropout behind each sub-block.
        num_sequences: Sequences of the micro-batch.
    """

    block: Block
    model: ModelSpec = LLAMA
    kernel: AttentionKernel = AttentionKernel.FLASH
    hidden_dropout: float = 0.0
    num_sequences: int = 2

    @property
    def whole(self) -> ModelSpec:
        """Return a model of this layer alone."""
        return replace(self.model, runs=(BlockRun(block=self.block, count=1),))

    @property
    def workload(self) -> TrainWorkload:
        """Return the run."""
        return TrainWorkload(
            seq_len=SEQ_LEN,
            global_batch_size=self.num_sequences,
            precision=Precision.BF16,
            attention_kernel=self.kernel,
            hidden_dropout=self.hidden_dropout,
        )

    @property
    def sharding(self) -> Sharding:
        """Return the sharding that cuts nothing."""
        return Sharding(
            tp=1, sequence_parallel=False, micro_batch_size=self.num_sequences, seq_len=SEQ_LEN, vocab_divisor=1
        )

    @property
    def graph(self) -> ModelGraph:
        """Return the operators, of plain modules."""
        return build_graph(self.whole, self.workload, eager=True)

    def cut(self, layer: LayerGraph) -> RankLayer:
        """Return the only rank's share of a layer."""
        return shard_layer(layer, self.sharding)

    def stream(self) -> Tensor:
        """Return a layer's input."""
        return torch.randn(self.num_sequences, SEQ_LEN, self.model.hidden_size, dtype=BF16).requires_grad_()

    def tokens(self) -> Tensor:
        """Return tokens or labels."""
        return torch.randint(self.model.vocab_size, (self.num_sequences, SEQ_LEN))


DENSE = Block(mixer=ATTENTION, feed_forward=swiglu(160))
WIDE = replace(ATTENTION, num_key_value_heads=8)
ZERO_CENTERED = replace(LLAMA, traits=(Trait.ZERO_CENTERED_NORM, Trait.INTERLEAVED_ROTARY))
UNSHIFTED = replace(GPT, norm=Norm.LAYER_UNSHIFTED, position_embedding=PositionEmbedding.NONE)

CASES: Mapping[str, Case] = {
    "llama": Case(block=DENSE),
    "llama, fused": Case(block=DENSE, kernel=FUSED),
    "llama, unfused": Case(block=DENSE, kernel=UNFUSED),
    "a part rotated": Case(block=DENSE, model=replace(LLAMA, rotary_fraction=0.5)),
    "dropout": Case(block=DENSE, hidden_dropout=0.1),
    "queries and keys normalised by head": Case(block=replace(DENSE, mixer=replace(WIDE, qk_norm=QueryKeyNorm.HEAD))),
    "queries and keys normalised whole": Case(block=replace(DENSE, mixer=replace(WIDE, qk_norm=QueryKeyNorm.WIDTH))),
    "parallel, two norms": Case(block=replace(DENSE, parallel=True)),
    "parallel, one norm": Case(block=replace(DENSE, parallel=True, num_norms=1)),
    "norms behind": Case(block=replace(DENSE, num_norms=0, num_post_norms=2)),
    "gpt, window": Case(block=GPT.runs[0].block, model=GPT),
    "gpt, window, fused": Case(block=GPT.runs[0].block, model=GPT, kernel=FUSED, num_sequences=1),
    "gpt, window, unfused": Case(block=GPT.runs[0].block, model=GPT, kernel=UNFUSED),
    "chunks": Case(block=GPT.runs[1].block, model=GPT),
    "chunks, unfused": Case(block=GPT.runs[1].block, model=UNSHIFTED, kernel=UNFUSED),
    "latent": Case(block=replace(DENSE, mixer=LATENT)),
    "latent, fused": Case(block=replace(DENSE, mixer=LATENT), kernel=FUSED),
    "latent, unfused": Case(block=replace(DENSE, mixer=LATENT), kernel=UNFUSED),
    "latent, direct queries": Case(block=replace(DENSE, mixer=replace(LATENT, q_lora_rank=None))),
    "experts": Case(block=replace(DENSE, feed_forward=EXPERTS)),
    "experts, ungated share": Case(block=replace(DENSE, feed_forward=replace(EXPERTS, shared_gate=False))),
    "experts, plain router": Case(
        block=replace(DENSE, feed_forward=replace(EXPERTS, shared=None, shared_gate=False, router=PLAIN_ROUTER))
    ),
    **{f"gated {kind}": Case(block=replace(DENSE, feed_forward=GATED[kind])) for kind in Activation},
    **{f"plain {kind}": Case(block=replace(DENSE, feed_forward=PLAIN[kind])) for kind in Activation},
    **{
        f"experts, {'gated' if expert.gated else 'plain'} {kind}": Case(
            block=replace(DENSE, feed_forward=replace(EXPERTS, expert=expert))
        )
        for kind in Activation
        for expert in (GATED[kind], PLAIN[kind])
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_keeps_what_autograd_keeps(name: str) -> None:
    case = CASES[name]
    with in_bf16():
        layer = planned_block(case.whole, case.block, case.workload)
    ledger = case.cut(case.graph.blocks[case.block])
    assert kept_by(layer, (case.stream(),), case.workload) == ledger.all_saved_bytes


@pytest.mark.parametrize("block", [DENSE, replace(DENSE, mixer=LATENT)], ids=["attention", "latent"])
def test_scales_stored_less_one_add_a_vector_in_fp32_for_each_norm(block: Block) -> None:
    case = Case(block=block, model=ZERO_CENTERED)
    with in_bf16():
        layer = planned_block(case.whole, block, case.workload)
    vectors = sum(4 * norm.weight.numel() for norm in layer.modules() if isinstance(norm, planned_model().Norm))
    ledger = case.cut(case.graph.blocks[block])
    assert kept_by(layer, (case.stream(),), case.workload) == ledger.all_saved_bytes + vectors


@pytest.mark.parametrize("name", ["llama", "latent", "experts"])
def test_plain_modules_keep_and_move_more_than_fused_kernels(name: str) -> None:
    case = CASES[name]
    fused = case.cut(build_graph(case.whole, case.workload).blocks[case.block])
    eager = case.cut(case.graph.blocks[case.block])
    full = Recompute(granularity=Granularity.FULL)
    assert eager.all_saved_bytes > fused.all_saved_bytes
    assert eager.saved_bytes(full) == fused.saved_bytes(full)
    assert (eager.trainable, eager.frozen) == (fused.trainable, fused.frozen)
    assert traffic(case.graph.blocks[case.block]) > traffic(build_graph(case.whole, case.workload).blocks[case.block])


def traffic(layer: LayerGraph) -> int:
    """Return the bytes a token, or a row of an expert, that element-wise kernels move."""
    works = [operator.work for operator in layer.operators if isinstance(operator.work, Pointwise)]
    return sum(work.forward_bytes_per_token + work.backward_bytes_per_token for work in works)


EMBEDDINGS = {
    "llama": Case(block=DENSE),
    "dropout": Case(block=DENSE, hidden_dropout=0.1),
    "learned positions and a norm": Case(block=DENSE, model=GPT, num_sequences=1),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_the_embedding_keeps_what_autograd_keeps(name: str) -> None:
    case, program = EMBEDDINGS[name], planned_model()
    with in_bf16():
        table = program.TokenTable(case.model.vocab_size, case.model.hidden_size, 0)
        positions = program.Positions(facts_of(case.whole), context_of(case.workload), 1)
    ledger = case.cut(case.graph.embedding)
    front = torch.nn.Sequential(table, positions)
    assert kept_by(front, (case.tokens(),), case.workload) == ledger.all_saved_bytes


@pytest.mark.parametrize("model", [LLAMA, GPT, replace(LLAMA, tie_word_embeddings=True)], ids=["llama", "gpt", "tied"])
def test_norm_head_and_loss_keep_what_autograd_keeps_and_the_sum_of_weights(model: ModelSpec) -> None:
    case = Case(block=DENSE, model=model)
    head = Behind(case)
    ledger = case.cut(case.graph.head)
    beside = sum(part.num_bytes for part in ledger.saved if part.saved.name == LOSS_BESIDE)
    total_weight_bytes = 4  # one number that cross entropy keeps
    kept = kept_by(head, (case.stream(), case.tokens()), case.workload)
    assert kept == ledger.all_saved_bytes - beside + total_weight_bytes


class Behind(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """What stands behind the last layer of the shipped model."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        program, model = planned_model(), case.whole
        with in_bf16():
            self.norm = program.Norm(facts_of(model), model.hidden_size)
            self.head = program.Head(model.hidden_size, model.vocab_size, bias=model.lm_head_bias, seed=2)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        logits = self.head(self.norm(hidden))
        return planned_model().loss_of(logits, shift_labels=labels, num_items_in_batch=labels.numel())


def test_the_ledgers_peak_holds_what_the_loss_allocates_and_two_micro_batches_of_logits() -> None:
    """A pipeline's last stage holds the logits of two micro-batches in 16 bit; nothing here does."""
    case = Case(block=DENSE, model=replace(LLAMA, vocab_size=65_536))
    num_logits = case.model.vocab_size * case.num_sequences * SEQ_LEN
    head, normed, labels = Behind(case).head.requires_grad_(requires_grad=False), case.stream(), case.tokens()

    def step() -> None:
        loss = planned_model().loss_of(head(normed), shift_labels=labels, num_items_in_batch=labels.numel())
        loss.backward()

    allocated = peak_allocated_bytes(step)
    kept = case.cut(case.graph.head).saved
    few = sum(part.num_bytes for part in kept if not part.saved.vocab_features)
    assert allocated == pytest.approx(12 * num_logits, abs=few)
    assert head_peak_bytes(shard_model(case.graph, case.sharding)) == 16 * num_logits + few


@pytest.mark.parametrize(("target", "eager"), [(Target.DEEPSPEED, True), (Target.MEGATRON, False), (Target.ANY, False)])
def test_a_plan_counts_what_its_target_keeps(target: Target, eager: bool) -> None:
    request = PlanRequest(
        workload=tiny_workload(),
        constraints=Constraints(recompute=("none",)),
        memory_headroom=0.05,
        target=target,
        objective=Objective.STEP_TIME,
    )
    model = replace(tiny_dense_model(), rope_scaling={})
    plan = search(model, two_node_cluster(), request)
    graph = build_graph(model, request.workload, eager=eager)
    placed = place(model, graph, plan.best.layout, request.workload, CAPABILITIES[target])
    assert plan.best.memory == memory_ledger(placed)
