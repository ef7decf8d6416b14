"""What the tests of the Megatron-LM emitter's refusals share."""

import pytest

from planner.emit.megatron import emit_megatron
from planner.errors import NotExpressibleError
from planner.layout import Layout
from planner.models.specs import ModelSpec
from planner.requests.workload import Precision, TrainMethod, TrainWorkload
from tests.emitted.plans import cluster_of, layout_of_degrees, plan_of

WORKLOAD = TrainWorkload(
    seq_len=8192, global_batch_size=128, precision=Precision.BF16, method=TrainMethod.FULL_FINETUNE
)
"""Fine-tuning takes the model as it is; pretraining may start without its rope scaling."""


def refusal(model: ModelSpec, layout: Layout | None = None, workload: TrainWorkload = WORKLOAD) -> str:
    """Return the message with which a plan is refused; without a layout, on one stage of eight replicas."""
    layout = layout or layout_of_degrees(layers=(model.num_layers,), dp=8, num_microbatches=16)
    with pytest.raises(NotExpressibleError) as caught:
        emit_megatron(plan_of(model, workload, layout, cluster_of(1, layout.world_size)))
    assert caught.value.hint
    return caught.value.message


def accepts(model: ModelSpec, layout: Layout, workload: TrainWorkload = WORKLOAD) -> bool:
    """Return whether files are written, as they must be for the plan that a case changes."""
    return bool(emit_megatron(plan_of(model, workload, layout, cluster_of(1, layout.world_size))))
