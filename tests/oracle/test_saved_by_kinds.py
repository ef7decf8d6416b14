"""What latent attention and experts keep for backward, against what autograd keeps, with and without recomputation."""

from dataclasses import replace

import pytest

from planner.layout import Granularity, Recompute
from planner.models.blocks import (
    Activation,
    Block,
    DenseFeedForward,
    LatentAttention,
    MixtureOfExperts,
    Router,
    SelfAttention,
)
from planner.models.specs import ModelSpec
from tests.oracle.published_shapes import decoder, swiglu
from tests.oracle.test_saved_activations import TOKENS, input_tensor, ledger_layer, run
from tests.oracle.torch_kernels import Recorder
from tests.oracle.torch_layer import TorchLayer

HIDDEN = 64
ATTENTION = SelfAttention(num_attention_heads=8, num_key_value_heads=4, head_dim=8)
LATENT = LatentAttention(
    num_attention_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=6, v_head_dim=10
)
EXPERTS = MixtureOfExperts(num_experts=6, experts_per_token=2, expert=swiglu(40), router=Router())
SHARED = replace(EXPERTS, shared=swiglu(48))
SQUARED = DenseFeedForward(intermediate_size=40, gated=False, activation=Activation.RELU2)

LAYERS = {
    "latent attention": Block(mixer=LATENT, feed_forward=swiglu(96)),
    "latent attention, direct queries": Block(mixer=replace(LATENT, q_lora_rank=None), feed_forward=swiglu(96)),
    "experts": Block(mixer=ATTENTION, feed_forward=EXPERTS),
    "plain experts": Block(mixer=ATTENTION, feed_forward=replace(EXPERTS, expert=SQUARED)),
    "shared experts": Block(mixer=ATTENTION, feed_forward=SHARED),
    "gated shared experts": Block(mixer=ATTENTION, feed_forward=replace(SHARED, shared_gate=True)),
    "latent experts": Block(mixer=ATTENTION, feed_forward=replace(SHARED, latent_size=24)),
    "both": Block(mixer=LATENT, feed_forward=SHARED),
}
CASES = [
    *((name, ()) for name in LAYERS),
    ("latent attention", ("mla_up_proj",)),
    ("latent attention, direct queries", ("mla_up_proj",)),
    ("experts", ("moe",)),
    ("experts", ("moe_act",)),
    ("latent experts", ("moe",)),
    ("gated shared experts", ("moe",)),
    ("gated shared experts", ("shared_experts",)),
    ("gated shared experts", ("shared_experts", "moe_act")),
    ("both", ("mla_up_proj", "moe_act", "shared_experts")),
]


def statistics(block: Block, recompute: tuple[str, ...]) -> list[int]:
    """Return the bytes of each vector of norm statistics; a latent's norm is recomputed with its projection."""
    norms = 2
    if isinstance(block.mixer, LatentAttention) and "mla_up_proj" not in recompute:
        norms += 1 if block.mixer.q_lora_rank is None else 2
    return [4 * TOKENS] * norms


@pytest.mark.parametrize(("name", "recompute"), CASES)
def test_each_saved_tensor_has_the_bytes_that_autograd_keeps(name: str, recompute: tuple[str, ...]) -> None:
    block = LAYERS[name]
    spec: ModelSpec = decoder((block, 1), hidden_size=HIDDEN, vocab_size=512)
    recorder = Recorder()
    layer = TorchLayer(spec, run(), recorder, recompute=recompute)
    with recorder.watch():
        layer(input_tensor(spec))
    ledger = ledger_layer(spec, run())
    ours = {
        part.saved.name: part.num_bytes
        for part in ledger.saved
        if frozenset(recompute).isdisjoint(part.saved.dropped_by)
    }
    if recompute:
        chosen = Recompute(granularity=Granularity.SELECTIVE, modules=recompute)
        assert sum(ours.values()) == ledger.saved_bytes(chosen) < ledger.all_saved_bytes
    nameless = [*statistics(block, recompute), ours.pop("log-sum-exp")]
    assert recorder.by_name() == ours
    assert recorder.nameless() == sorted(nameless)
