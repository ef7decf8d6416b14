"""What Megatron-LM cannot express, with the nearest it can; each subject has a file.

Every rule was read in megatron-core 0.19.2 (`megatron/training/arguments.py`, `megatron/training/argument_utils.py`,
`megatron/core/transformer/transformer_config.py` and the modules named beside a rule). A plan that breaks one is
refused, never changed silently; many of these rules Megatron itself checks only after all processes have started, or
not at all.
"""

from planner.emit.megatron_layout_limits import require_layout
from planner.emit.megatron_model_limits import require_model
from planner.emit.megatron_refusal import TARGET
from planner.emit.megatron_workload_limits import require_workload

__all__ = ["TARGET", "require_layout", "require_model", "require_workload"]
