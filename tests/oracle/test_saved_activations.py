"""What the ledger says a layer keeps for backward, against what autograd keeps, tensor by tensor and byte by byte.

Beyond the ledger's tensors autograd keeps the statistics of each norm, an fp32 row of one (RMSNorm) or two (LayerNorm)
numbers a token: 4 of some 100,000 bytes a token in a real layer. The ledger leaves them out on purpose; here they are
counted exactly. The log-sum-exp of flash attention is in both, but torch gives it no name.
"""

from dataclasses import replace
from typing import Any

import pytest

from planner.layout import Granularity, Recompute
from planner.models.blocks import Activation, Block, DenseFeedForward, Norm, QueryKeyNorm, SelfAttention
from planner.models.layers import build_graph
from planner.models.specs import BlockRun, ModelSpec
from planner.ranks.shard import RankLayer, shard_layer
from planner.ranks.sharding import Sharding
from planner.requests.workload import AttentionKernel, Lora, Precision, TrainMethod, TrainWorkload
from tests.builders import tiny_dense_model
from tests.oracle.torch_kernels import BF16, Recorder, torch
from tests.oracle.torch_layer import TorchLayer, torch_head

SEQUENCES, TOKENS_OF_SEQUENCE = 2, 32
TOKENS = SEQUENCES * TOKENS_OF_SEQUENCE
LORA = Lora(rank=4, alpha=8.0, target_modules=("qkv",))
EVERYWHERE = Lora(rank=4, alpha=8.0, target_modules=("qkv", "proj", "fc1", "fc2"))
MLP = Recompute(granularity=Granularity.SELECTIVE, modules=("mlp",))
NONE = Recompute(granularity=Granularity.NONE)
FULL = Recompute(granularity=Granularity.FULL)


def model(
    *,
    groups: int = 4,
    head_dim: int = 8,
    gated: bool = True,
    norm: Norm = Norm.RMS,
    qk_norm: bool = False,
    parallel: bool = False,
    num_norms: int = 2,
) -> ModelSpec:
    """Return a layer of 8 heads on a stream of 64."""
    base = tiny_dense_model()
    block = Block(
        mixer=SelfAttention(
            num_attention_heads=8,
            num_key_value_heads=groups,
            head_dim=head_dim,
            qk_norm=QueryKeyNorm.HEAD if qk_norm else QueryKeyNorm.NONE,
        ),
        feed_forward=DenseFeedForward(intermediate_size=160, gated=gated, activation=Activation.SILU),
        parallel=parallel,
        num_norms=num_norms,
    )
    return replace(base, norm=norm, runs=(BlockRun(block=block, count=1),))


def run(
    kernel: AttentionKernel = AttentionKernel.FLASH,
    *,
    hidden_dropout: float = 0.0,
    attention_dropout: float = 0.0,
    lora: Lora | None = None,
) -> TrainWorkload:
    return TrainWorkload(
        seq_len=TOKENS_OF_SEQUENCE,
        global_batch_size=SEQUENCES,
        precision=Precision.BF16,
        attention_kernel=kernel,
        hidden_dropout=hidden_dropout,
        attention_dropout=attention_dropout,
        method=TrainMethod.LORA if lora else TrainMethod.PRETRAIN,
        lora=lora,
    )


def ledger_layer(spec: ModelSpec, workload: TrainWorkload) -> RankLayer:
    """Return the layer's share of the only rank."""
    sharding = Sharding(tp=1, sequence_parallel=False, cp=1, micro_batch_size=SEQUENCES, seq_len=TOKENS_OF_SEQUENCE)
    return shard_layer(build_graph(spec, workload).blocks[spec.runs[0].block], sharding)


def input_tensor(spec: ModelSpec) -> Any:
    return torch.randn(SEQUENCES, TOKENS_OF_SEQUENCE, spec.hidden_size, dtype=BF16).requires_grad_()


def statistics(spec: ModelSpec, *, num_norms: int) -> list[int]:
    """Return the bytes of each vector of norm statistics."""
    attention = spec.runs[0].block.mixer
    rows = [TOKENS] * num_norms
    if isinstance(attention, SelfAttention) and attention.qk_norm is QueryKeyNorm.HEAD:
        rows += [TOKENS * attention.num_attention_heads, TOKENS * attention.num_key_value_heads]
    vectors = 2 if spec.norm is Norm.LAYER else 1
    return [4 * count for count in rows for _ in range(vectors)]


UNFUSED = AttentionKernel.UNFUSED

CASES = {
    "llama": (model(), run()),
    "multi-query": (model(groups=1), run()),
    "wide-heads": (model(head_dim=16), run()),
    "qk-norm": (model(qk_norm=True), run()),
    "gpt-2": (model(groups=8, gated=False, norm=Norm.LAYER), run()),
    "gpt-2-dropout": (model(groups=8, gated=False, norm=Norm.LAYER), run(hidden_dropout=0.1, attention_dropout=0.1)),
    "unfused": (model(groups=8, gated=False), run(UNFUSED)),
    "unfused-grouped": (model(groups=2), run(UNFUSED)),
    "unfused-dropout": (model(groups=8), run(UNFUSED, hidden_dropout=0.1, attention_dropout=0.1)),
    "parallel-one-norm": (model(parallel=True, num_norms=1), run()),
    "parallel-two-norms": (model(parallel=True), run()),
    "lora-qkv": (model(), run(lora=LORA)),
    "lora-everywhere": (model(), run(lora=EVERYWHERE)),
    "lora-unfused": (model(groups=8), run(UNFUSED, lora=LORA)),
}


@pytest.mark.parametrize("case", CASES)
def test_each_saved_tensor_has_the_bytes_that_autograd_keeps(case: str) -> None:
    spec, workload = CASES[case]
    recorder = Recorder()
    layer = TorchLayer(spec, workload, recorder)
    with recorder.watch():
        layer(input_tensor(spec))
    ledger = ledger_layer(spec, workload)
    ours = {part.saved.name: part.num_bytes for part in ledger.saved}
    nameless = statistics(spec, num_norms=spec.runs[0].block.num_norms)
    if workload.attention_kernel is AttentionKernel.FLASH:
        nameless.append(ours.pop("log-sum-exp"))
    assert recorder.by_name() == ours
    assert recorder.nameless() == sorted(nameless)


@pytest.mark.parametrize("case", ["llama", "gpt-2-dropout", "unfused"])
def test_recomputing_the_mlp_keeps_what_autograd_keeps_around_a_checkpoint(case: str) -> None:
    spec, workload = CASES[case]
    recorder = Recorder()
    layer = TorchLayer(spec, workload, recorder, recompute=("mlp",))
    with recorder.watch():
        layer(input_tensor(spec))
    ledger = ledger_layer(spec, workload)
    ours = {part.saved.name: part.num_bytes for part in ledger.saved if "mlp" not in part.saved.dropped_by}
    assert sum(ours.values()) == ledger.saved_bytes(MLP)
    nameless = statistics(spec, num_norms=1)
    if workload.attention_kernel is AttentionKernel.FLASH:
        nameless.append(ours.pop("log-sum-exp"))
    assert recorder.by_name() == ours
    assert recorder.nameless() == sorted(nameless)


def test_recomputing_the_layer_keeps_its_input_alone() -> None:
    spec, workload = CASES["llama"]
    recorder = Recorder()
    layer = TorchLayer(spec, workload, recorder)
    with recorder.watch():
        torch.utils.checkpoint.checkpoint(layer, input_tensor(spec), use_reentrant=True)
    assert sum(recorder.kept.values()) == ledger_layer(spec, workload).saved_bytes(FULL)


def test_the_head_keeps_the_norms_input_and_output_and_an_fp32_softmax() -> None:
    spec, workload = CASES["llama"]
    recorder = Recorder()
    targets = recorder.named("targets", torch.zeros(SEQUENCES, TOKENS_OF_SEQUENCE, dtype=torch.int64))
    with recorder.watch():
        torch_head(spec, recorder, input_tensor(spec), targets)
    sharding = Sharding(tp=1, sequence_parallel=False, cp=1, micro_batch_size=SEQUENCES, seq_len=TOKENS_OF_SEQUENCE)
    head = shard_layer(build_graph(spec, workload).head, sharding)
    assert recorder.by_name() == {part.saved.name: part.num_bytes for part in head.saved} | {"targets": 8 * TOKENS}
    assert recorder.nameless() == [4 * TOKENS]
