"""What each training framework does where a row is silent: kernels, sharding, overlap, recomputation.

A stack is recognised by its name in the row. What it assumes is its framework's recommended recipe of the time, never
a property of one source's rows, and each assumption that a prediction used is said beside it.
"""

import re
from dataclasses import dataclass, replace

from planner.frameworks.capabilities import ANY, Capabilities
from planner.frameworks.habits import (
    FUSED_LOSS,
    PLANNED,
    PYTORCH_LOSS,
    PYTORCH_LOSS_OF_A_PIPELINE,
    VOCABULARY_PARALLEL,
    Fsdp,
    Habits,
    LossHabit,
)
from profiles.software import AttentionKernels, HostPath, Software, TensorParallelOverlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One training framework.

    Args:
        title: What assumptions call it.
        name: Found in a row's `framework`.
        software: What it runs.
        zero_stage: What it shards unless the row says.
        overlaps: Data-parallel collectives run beside computation.
        sequence_parallel: Residuals are split over tp unless the row says.
        keeps_scores: Attention keeps its scores unless the row says.
        fp8_recipes: Its published recipes are in fp8 where the GPU has it, unless the row says.
        half_gradients: Gradients are kept and reduced in 16 bit.
        interleaves: Its recipes interleave virtual stages wherever there is a pipeline, unless the row says.
        whole_gradients: Gradients are reduced whole on every rank, though their optimizer states are sharded.
        experts_over_a_node: Its recipes spread experts over the GPUs of a node, unless the row says.
        scattered_transfers: Each rank of tp sends its part of the residual stream to the next stage.
        plain_modules: Layers keep what plain PyTorch operations keep for backward.
        habits: What it keeps on a GPU beside what its operators save.
        compiled_loss: What its loss peaks at in a row that is compiled; None means the same.
        keeps_products: Its selective checkpointing keeps every second matrix product and recomputes the rest.
        reports_reserved: The peak that it prints is what the allocator has reserved, not what is in use.
        reports_last_rank: The peak that it prints is that of the last rank, not the largest of all.
    """

    title: str
    name: re.Pattern[str]
    software: Software
    zero_stage: int
    overlaps: bool
    sequence_parallel: bool
    keeps_scores: bool = False
    fp8_recipes: bool = False
    half_gradients: bool = False
    interleaves: bool = False
    whole_gradients: bool = False
    experts_over_a_node: bool = False
    scattered_transfers: bool = False
    plain_modules: bool = False
    habits: Habits = PLANNED
    compiled_loss: LossHabit | None = None
    keeps_products: bool = False
    reports_reserved: bool = False
    reports_last_rank: bool = False

    @property
    def capabilities(self) -> Capabilities:
        """Return what the framework does that decides prices."""
        return replace(
            ANY,
            reduce_scatter_from=2 if self.whole_gradients else ANY.reduce_scatter_from,
            scattered_transfers=self.scattered_transfers,
        )


def _name(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_FLASH_2 = Software(attention=AttentionKernels.FLASH_2)

_FSDP = Stack(
    title="PyTorch FSDP (FlashAttention-2)",
    name=_name(r"fsdp|fairscale|lightning|accelerate"),
    software=_FLASH_2,
    zero_stage=3,
    overlaps=True,
    sequence_parallel=True,
    half_gradients=True,
    habits=Habits(loss=PYTORCH_LOSS, fsdp=Fsdp.FLAT_PARAMETERS),
)
_TITAN = replace(
    _FSDP,
    title="torchtitan at the end of 2024 (FSDP2, FlashAttention-2, the loss not compiled)",
    name=_name(r"titan.*\b2024"),
    habits=Habits(loss=PYTORCH_LOSS, fsdp=Fsdp.PER_PARAMETER, foreach_update=True),
    keeps_products=True,
    reports_reserved=True,
)
_MEGATRON = Stack(
    title="Megatron-Core (distributed optimizer, Transformer Engine)",
    name=_name(r"megatron|mcore"),
    software=Software(),
    zero_stage=1,
    overlaps=True,
    sequence_parallel=True,
    habits=Habits(loss=VOCABULARY_PARALLEL),
)

STACKS = (
    Stack(
        title="Megatron-DeepSpeed",
        name=_name(r"megatron-?deepspeed"),
        software=Software(host=HostPath.EAGER_2022),
        scattered_transfers=True,  # DeepSpeed's `PipelineEngine.is_pipe_partitioned`
        zero_stage=0,
        overlaps=False,
        sequence_parallel=False,
        keeps_scores=True,
        half_gradients=True,
        habits=Habits(loss=VOCABULARY_PARALLEL),
    ),
    Stack(
        title="llm-foundry (Composer, FSDP, Triton FlashAttention)",
        name=_name(r"foundry|composer|mosaic"),
        software=Software(attention=AttentionKernels.FLASH_1),
        zero_stage=3,
        overlaps=True,
        sequence_parallel=False,
        half_gradients=True,
        # llm-foundry's models: `loss_fn: fused_crossentropy`, FlashAttention's kernel.
        habits=Habits(loss=FUSED_LOSS, fsdp=Fsdp.FLAT_PARAMETERS),
    ),
    Stack(
        title="an in-house stack on PyTorch modules",
        name=_name(r"in-?house|aleph"),
        software=Software(
            attention=AttentionKernels.FLASH_2,
            fused_norms=False,
            tensor_parallel_overlap=TensorParallelOverlap.NOTHING,
        ),
        zero_stage=1,
        overlaps=False,
        sequence_parallel=False,
        half_gradients=True,
        whole_gradients=True,
        plain_modules=True,
        habits=Habits(loss=PYTORCH_LOSS_OF_A_PIPELINE, keeps_stage_outputs=True, fixed_segments=True),
    ),
    Stack(
        title="InternEvo (ZeRO-1, FlashAttention-2)",
        name=_name(r"intern"),
        software=_FLASH_2,
        zero_stage=1,
        overlaps=True,
        sequence_parallel=False,
        # `internlm/model/losses`: FlashAttention's cross entropy on logits that stay split.
        habits=Habits(loss=FUSED_LOSS),
    ),
    _TITAN,
    replace(
        _TITAN,
        title="torchtitan (FSDP2, FlashAttention-2)",
        name=_name(r"titan"),
        compiled_loss=FUSED_LOSS,
    ),
    replace(
        _FSDP,
        title="NeMo AutoModel (FSDP2, FlashAttention-2, DeepEP)",
        name=_name(r"automodel"),
        software=replace(_FLASH_2, forwards_tokens=True),
        experts_over_a_node=True,
    ),
    _FSDP,
    replace(
        _MEGATRON,
        title="Megatron-Core by NeMo's recipes (distributed optimizer, Transformer Engine)",
        name=_name(r"nemo|bridge"),
        software=Software(tensor_parallel_overlap=TensorParallelOverlap.EVERY_PRODUCT, forwards_tokens=True),
        fp8_recipes=True,
        interleaves=True,
        half_gradients=True,  # `grad_reduce_in_fp32 = False` in NeMo's and Megatron-Bridge's performance recipes
    ),
    replace(
        _MEGATRON,
        title="Megatron-LM's functional tests (its defaults; the last rank logs its peak)",
        name=_name(r"megatron-lm ci"),
        zero_stage=0,
        overlaps=False,
        sequence_parallel=False,
        reports_last_rank=True,
    ),
    _MEGATRON,
    Stack(
        title="DeepSpeed (FlashAttention-2)",
        name=_name(r"deepspeed"),
        software=_FLASH_2,
        zero_stage=1,
        overlaps=True,
        sequence_parallel=False,
        habits=Habits(loss=PYTORCH_LOSS_OF_A_PIPELINE),
    ),
)
"""Looked through in order; the first whose name is found counts."""

UNKNOWN = replace(_MEGATRON, title="an unknown stack, taken as Megatron-Core")


def stack_named(framework: str, *, year: str = "") -> Stack:
    """Return the stack that a row names, or the one that is taken for an unknown name.

    Args:
        framework: What the row says.
        year: When it was measured, where the row's source says so.
    """
    name = f"{framework} {year}"
    return next((stack for stack in STACKS if stack.name.search(name)), UNKNOWN)


def attention_of(cell: str) -> AttentionKernels | None:
    """Return the attention kernels that a row's `flash_attention` says, or None where it says nothing."""
    text = cell.lower()
    if not text:
        return None
    if text.startswith(("no", "unfused", "false")):
        return (
            AttentionKernels.FUSED_SOFTMAX if "fused softmax" in text or text == "unfused" else AttentionKernels.PLAIN
        )
    if re.search(r"fa-?1|flash-?(attention)?-?1|triton", text):
        return AttentionKernels.FLASH_1
    if re.search(r"fa-?2|flash-?(attention)?-?2", text):
        return AttentionKernels.FLASH_2
    return None
