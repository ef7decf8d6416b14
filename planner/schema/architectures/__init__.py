"""What each Hugging Face architecture fixes, and what its keys mean: one file a family, one entry a class."""

from collections.abc import Mapping

from planner.schema.architecture import Architecture
from planner.schema.architectures.deci import DECI
from planner.schema.architectures.dense import DENSE
from planner.schema.architectures.experts import EXPERTS
from planner.schema.architectures.gemma import GEMMA
from planner.schema.architectures.hybrids import HYBRIDS
from planner.schema.architectures.latent import LATENT
from planner.schema.architectures.llama4 import LLAMA4
from planner.schema.architectures.qwen3_vl import QWEN3_VL

ARCHITECTURES: Mapping[str, Architecture] = {
    architecture.name: architecture
    for family in (DENSE, EXPERTS, LATENT, HYBRIDS, GEMMA, LLAMA4, QWEN3_VL, DECI)
    for architecture in family
}
"""Every architecture that can be read, by class name."""
