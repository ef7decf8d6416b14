"""What training software does to the same kernels: attention of which era, how fast the host launches, what overlaps.

A cost model prices operations on hardware; two frameworks that run the same operations on the same GPUs still differ.
What differs is named here and nowhere else, so that a figure that was fitted on one framework's runs is never taken for
a property of the GPU.
"""

from dataclasses import dataclass
from enum import StrEnum

from profiles.constants import LAUNCH_SECONDS, PLAIN_NORM_FACTOR, Constant


class AttentionKernels(StrEnum):
    """Generations of attention kernels."""

    CURRENT = "current"
    """cuDNN and FlashAttention-3 where the GPU has them (Transformer Engine since 2024)."""
    FLASH_2 = "flash-2"
    """FlashAttention-2 (Dao, arXiv 2307.08691)."""
    FLASH_1 = "flash-1"
    """FlashAttention (Dao et al., arXiv 2205.14135) and its port to Triton."""
    FUSED_SOFTMAX = "fused-softmax"
    """Scores in memory; scale, mask and softmax in one kernel (Megatron-LM)."""
    PLAIN = "plain"
    """Scores in memory; scale, mask and softmax as PyTorch operations."""

    @property
    def keeps_scores(self) -> bool:
        """Return whether the score matrix goes through memory."""
        return self in (AttentionKernels.FUSED_SOFTMAX, AttentionKernels.PLAIN)


class HostPath(StrEnum):
    """How kernels are launched."""

    CURRENT = "current"
    """PyTorch 2 and what is built on it."""
    EAGER_2022 = "eager-2022"
    """A Python call for each operation, on the hosts and with the pipelines of Megatron-DeepSpeed in 2022."""


class TensorParallelOverlap(StrEnum):
    """What tensor-parallel collectives run beside."""

    NOTHING = "nothing"
    """Each runs alone; what a layer has gathered is kept for its backward pass, not gathered again."""
    WEIGHT_GRADIENT = "weight-gradient"
    """Those of a column-parallel layer's backward pass run beside its products (Megatron-LM)."""
    EVERY_PRODUCT = "every-product"
    """Gathers and scatters are cut into a piece for each rank, and all but the first run beside the product that
    waits for them (Transformer Engine's user buffers, `--tp-comm-overlap`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Software:
    """One training stack.

    Args:
        attention: Kernels of attention whose scores are not kept.
        scores: Kernels of attention whose scores are kept.
        host: How kernels are launched.
        fused_norms: Norms are one kernel; else a chain of PyTorch operations.
        tensor_parallel_overlap: What tensor-parallel collectives run beside.
        forwards_tokens: Tokens travel once to each node, and once to each GPU there, that has experts for them
            (DeepEP); else once for each expert.
    """

    attention: AttentionKernels = AttentionKernels.CURRENT
    scores: AttentionKernels = AttentionKernels.FUSED_SOFTMAX
    host: HostPath = HostPath.CURRENT
    fused_norms: bool = True
    tensor_parallel_overlap: TensorParallelOverlap = TensorParallelOverlap.WEIGHT_GRADIENT
    forwards_tokens: bool = False

    @property
    def launch_seconds(self) -> Constant:
        """Return the host's time for one launch: a pass over a layer takes no less than all of its launches."""
        return LAUNCH_SECONDS[self.host.value]

    @property
    def norm_factor(self) -> float:
        """Return by how much norms move more than their least bytes."""
        return 1.0 if self.fused_norms else PLAIN_NORM_FACTOR.value


CURRENT_SOFTWARE = Software()
"""What plans are priced with unless their target runs something else (`planner.frameworks.capabilities`)."""
