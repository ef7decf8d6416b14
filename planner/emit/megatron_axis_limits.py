"""Degrees of tensor, context and expert parallelism that Megatron-LM or Transformer Engine would not run.

Rules on context parallelism that `validate_args` does not know are those of Transformer Engine's attention
(`transformer_engine/pytorch/attention/dot_product_attention`: `context_parallel.py` and `utils.py`, 2.20), of
`core/ssm/mamba_context_parallel.py`, and of `TransformerConfig.__post_init__`.
"""

from planner.emit.megatron_parts import Parts
from planner.emit.megatron_refusal import OTHER_TARGET, refuse
from planner.layout import Layout
from planner.models.blocks import MixtureOfExperts
from planner.requests.workload import AttentionKernel, Packing, Precision, TrainWorkload


def require_tensor(layout: Layout, parts: Parts, workload: TrainWorkload) -> None:
    """Refuse tp that does not split every part."""
    tp = layout.tp
    if layout.sequence_parallel and tp == 1:
        refuse("sequence_parallel with tp = 1 is switched off by Megatron.", "Use sequence_parallel false.")
    if parts.experts is not None and tp > 1 and not layout.sequence_parallel:
        refuse(f"tp = {tp} with experts and without sequence_parallel.", "Use sequence_parallel true, or tp = 1.")
    for what, size in _tensor_sizes(parts).items():
        if size % tp:
            refuse(f"tp = {tp} with {size} {what}.", "tp must divide them.")
    groups = parts.attention.num_key_value_heads if parts.attention is not None else tp
    if groups % tp and tp % groups:
        refuse(f"tp = {tp} with {groups} key/value heads.", "tp must divide them or be a multiple of them.")
    _require_fp8(parts, workload)


def _tensor_sizes(parts: Parts) -> dict[str, int]:
    sizes: dict[str, int] = {"attention heads": parts.num_attention_heads}
    if parts.state_space is not None:
        sizes |= {"Mamba-2 heads": parts.state_space.num_heads, "Mamba-2 groups": parts.state_space.num_groups}
    if parts.linear is not None:
        sizes |= {
            "linear-attention key heads": parts.linear.num_key_heads,
            "linear-attention value heads": parts.linear.num_value_heads,
        }
    if parts.dense is not None:
        sizes["features of the feed-forward (intermediate_size)"] = parts.dense.intermediate_size
    if parts.experts is not None and parts.experts.shared is not None:
        sizes["features of the shared experts (intermediate_size)"] = parts.experts.shared.intermediate_size
    return sizes


def _require_fp8(parts: Parts, workload: TrainWorkload) -> None:
    """Refuse mixers whose input projection is no multiple of 16 wide, which fp8 needs."""
    if not workload.precision.is_fp8:
        return
    widths: dict[str, int] = {}
    if parts.state_space is not None:
        mixer = parts.state_space
        widths["Mamba-2"] = 2 * mixer.inner_size + 2 * mixer.num_groups * mixer.state_size + mixer.num_heads
    if parts.linear is not None:
        linear = parts.linear
        widths["linear-attention"] = 2 * linear.key_size + 2 * linear.value_size + 2 * linear.num_value_heads
    alignment = 32 if workload.precision is Precision.FP8_MXFP8 else 16
    for what, width in widths.items():
        if width % alignment:
            refuse(
                f"precision {workload.precision} with a {what} input projection {width} wide.",
                f"fp8 needs a multiple of {alignment}; nearest: bf16.",
            )


def require_context(layout: Layout, parts: Parts, workload: TrainWorkload) -> None:
    """Refuse cp that the sequence, the heads or the attention kernel do not allow."""
    if layout.state_exchange:
        refuse("state_exchange; Megatron exchanges the heads of linear attention.", "Use state_exchange false.")
    cp = layout.cp
    if cp == 1:
        return
    if workload.seq_len % (2 * cp):
        refuse(f"cp = {cp} with sequences of {workload.seq_len} tokens.", "2 cp must divide the sequence.")
    _require_kernel(layout, parts, workload)
    _require_exchanged_heads(layout, parts)


def _require_kernel(layout: Layout, parts: Parts, workload: TrainWorkload) -> None:
    cp = layout.cp
    if workload.attention_kernel is AttentionKernel.UNFUSED and (parts.attention or parts.latent):
        refuse(f"cp = {cp} with attention_kernel unfused, which sees one rank only.", "Use flash or fused.")
    if parts.latent is not None and parts.latent.indexer is not None:
        refuse(
            f"cp = {cp} with sparse attention (`indexer`).", "Use cp = 1: it runs with --cp-comm-type allgather only."
        )
    if workload.documents is not None and workload.documents.packing is Packing.PACKED:
        refuse(
            f"cp = {cp} with packed documents: Megatron's pretraining data keeps them at their own lengths, and "
            "Transformer Engine's context parallelism needs multiples of 2 cp tokens.",
            f"Use cp = 1, or leave `documents` out, which lets them see one another. {OTHER_TARGET}",
        )
    if layout.ring > 1 and parts.window is not None:
        refuse(f"a ring of {layout.ring} (cp {cp}) around sliding windows.", "Use cp_kind ulysses.")
    if layout.ring > 1 and parts.attention is not None and parts.attention.sinks:
        refuse(f"a ring of {layout.ring} (cp {cp}) around attention with sinks.", "Use cp_kind ulysses.")


def _require_exchanged_heads(layout: Layout, parts: Parts) -> None:
    tp, cp, ulysses = layout.tp, layout.cp, layout.ulysses
    exchanged: dict[str, tuple[int, int, str]] = {}
    if parts.attention is not None:
        kept = max(1, parts.attention.num_key_value_heads // tp)
        exchanged["attention heads"] = (parts.attention.num_attention_heads // tp, ulysses, "ulysses")
        exchanged["key/value heads"] = (kept, ulysses, "ulysses")
    if parts.latent is not None:
        exchanged["attention heads"] = (parts.latent.num_attention_heads // tp, ulysses, "ulysses")
    if parts.linear is not None:
        exchanged["linear-attention key heads"] = (parts.linear.num_key_heads // tp, cp, "cp")
        exchanged["linear-attention value heads"] = (parts.linear.num_value_heads // tp, cp, "cp")
    if parts.state_space is not None:
        exchanged["Mamba-2 heads"] = (parts.state_space.num_heads // tp, cp, "cp")
        groups = parts.state_space.num_groups // tp
        if cp % groups:
            exchanged["Mamba-2 groups"] = (groups, cp, "cp")
    for what, (held, degree, axis) in exchanged.items():
        if held % degree:
            refuse(f"{axis} = {degree} with {held} {what} on each of tp = {tp} ranks.", f"{axis} must divide them.")


def require_experts_grid(layout: Layout, parts: Parts) -> None:
    """Refuse ep and etp that the experts or the rank order do not allow."""
    experts = parts.experts
    if experts is None:
        if layout.ep > 1 or layout.etp > 1:
            refuse(f"ep = {layout.ep}, etp = {layout.etp} without experts.", "Use ep = 1 and etp = 1.")
    else:
        _require_split_experts(layout, experts)
    # Without experts Megatron still lays out their grid, with etp = tp.
    edp = layout.edp if experts is not None else layout.cp * layout.dp
    if layout.pp > 1 and not layout.rank_order.endswith("pp") and edp != layout.dp:
        refuse(
            f"rank order {layout.rank_order} with dp = {layout.dp} and edp = {edp}.",
            "Use tp-cp-ep-dp-pp, or degrees that make edp equal to dp.",
        )


def _require_split_experts(layout: Layout, experts: MixtureOfExperts) -> None:
    if experts.num_experts % layout.ep:
        refuse(f"ep = {layout.ep} with {experts.num_experts} experts.", "ep must divide them.")
    if experts.expert.intermediate_size % layout.etp:
        refuse(
            f"etp = {layout.etp} with {experts.expert.intermediate_size} features of an expert (intermediate_size).",
            "etp must divide them.",
        )
    if experts.expert.bias and layout.etp > 1:
        refuse(f"etp = {layout.etp} with experts that have biases.", "Use etp = 1.")
