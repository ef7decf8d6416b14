"""What a framework keeps on a GPU beside what its operators save: habits of the loss, of sharded states, of buffers.

The ledger's own terms are those of Megatron-LM and DeepSpeed, which plans are made for. A habit says where another
framework differs; each was read in that framework's own source.
"""

from dataclasses import dataclass
from enum import IntEnum


class Fsdp(IntEnum):
    """PyTorch's fully sharded data parallel, by its version.

    Both keep a sharded parameter in fp32 alone (it is its own master copy), cast what they gather, and leave the
    sharded gradient in the parameter's format, whatever it was reduced in. Version 2 gathers into a flat buffer on a
    stream of its own, from which the parameters are copied out (`_fsdp_collectives.py: foreach_all_gather`); the
    allocator keeps the blocks of each stream apart.
    """

    NONE = 0
    FLAT_PARAMETERS = 1
    PER_PARAMETER = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LossHabit:
    """What a loss peaks at.

    Args:
        logit_bytes: Bytes for each logit, all tensors that are there at once together.
        whole: Every rank of tp holds the logits of the whole vocabulary.
        source: What the bytes are.
    """

    logit_bytes: int
    whole: bool
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a framework keeps beside what its operators save.

    Args:
        loss: What its loss peaks at; None means the operators' own account, a fused loss split over tp.
        fsdp: It shards by PyTorch's fully sharded data parallel, where weights are sharded at all.
        keeps_stage_outputs: Each micro-batch in flight holds its stage's output until the gradient of it has come.
        foreach_update: The optimizer updates all parameters in one call, with a temporary of a moment's size.
        fixed_segments: It runs on PyTorch before 2.1, whose allocator cannot grow its segments: the blocks that the
            layers' passes leave are too small for logits, and smaller tensors keep them from being given back.
    """

    loss: LossHabit | None = None
    fsdp: Fsdp = Fsdp.NONE
    keeps_stage_outputs: bool = False
    foreach_update: bool = False
    fixed_segments: bool = False


PLANNED = Habits()
"""The habits of the frameworks that plans are made for."""

VOCABULARY_PARALLEL = LossHabit(
    logit_bytes=2 + 4,
    whole=False,
    source="logits in 16 bit and their softmax in fp32, worked on in place",
)
PYTORCH_LOSS = LossHabit(
    logit_bytes=4 + 4 + 4,
    whole=False,
    source="PyTorch's cross_entropy: log-softmax, its gradient and that of the logits in fp32",
)
PYTORCH_LOSS_OF_A_PIPELINE = LossHabit(
    logit_bytes=2 + 2 + 4 + 4 + 4,
    whole=True,
    source="PyTorch's cross_entropy on logits gathered over tp, 14 bytes, and the last micro-batch's logits, 2",
)
FUSED_LOSS = LossHabit(
    logit_bytes=2 + 2,
    whole=False,
    source="logits and their gradient in 16 bit: one kernel, which works in fp32 inside",
)
