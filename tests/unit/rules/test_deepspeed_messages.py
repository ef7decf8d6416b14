"""DeepSpeed's rules beside their first cases: other ways to break them, and what comes near and breaks nothing."""

import pytest

from tests.unit.rules.deepspeed_cases import AUTOTP, EXPERTS, FP16, GONE, NATIVE, TRAINER, Case, case
from tests.unit.rules.test_deepspeed_rules import judged

ZERO = "zero_optimization"
ELASTIC = {"max_train_batch_size": 2000, "micro_batch_sizes": [2, 4]}

BROKEN: dict[str, tuple[Case, str]] = {
    "a batch that fits AutoTP's groups no better": (
        case({"tensor_parallel": {"autotp_size": 2}, "train_batch_size": 72}),
        "DSP801: train_batch_size 72 is not micro-batch 2 x accumulation 4 x 16 replicas = 128.",
    ),
    "a batch that replicas do not divide": (
        case({"train_micro_batch_size_per_gpu": GONE, "gradient_accumulation_steps": GONE, "train_batch_size": 130}),
        "DSP801: train_batch_size 130 is not micro-batch 8 x accumulation 1 x 16 replicas = 128.",
    ),
    "no sequence-parallel rank": (case({"sequence_parallel_size": 0}), "DSP102: sequence_parallel_size is 0."),
    "accumulation of the program's own that overlaps": (
        case({"managed_gradient_accumulation": False, f"{ZERO}.stage": 1}),
        "DSP206: managed_gradient_accumulation is false with overlap_comm at ZeRO stage 1.",
    ),
    "a parameter that the schedule does not take": (
        case({"scheduler.params.warmup_num_stepz": 3}),
        "DSP821: WarmupLR has no parameter `warmup_num_stepz`.",
    ),
    "a truth value for a window": (
        case({**FP16, "fp16.loss_scale_window": True}),
        "DSP710: loss_scale_window is a truth value.",
    ),
    "a window of 0": (
        case({**FP16, "fp16.loss_scale_window": 0}),
        "DSP710: loss_scale_window is 0 with a dynamic loss scale.",
    ),
    "super-offload below stage 3": (
        case({f"{ZERO}.offload_optimizer": {"device": "cpu", "super_offload": True}}),
        "DSP508: super_offload at ZeRO stage 2 does nothing.",
    ),
    "cores of super-offload without it": (
        case({f"{ZERO}.offload_optimizer": {"device": "cpu", "cpuadam_cores_perc": 0.5}}),
        "DSP508: cpuadam_cores_perc without super_offload does nothing.",
    ),
    "gradients divided before they are scattered": (
        case({"gradient_predivide_factor": 2.0}),
        "DSP513: gradient_predivide_factor 2 with reduce_scatter at ZeRO stage 2.",
    ),
    "another learning rate with an exponent": (
        case(command=f"{TRAINER} --learning_rate 1e-3"),
        "DSP806: lr is 0.0003 here, and --learning_rate says 0.001.",
    ),
    "bf16 that the trainer switches off": (
        case(command=f"{TRAINER} --bf16 false"),
        "DSP806: bf16.enabled is true here, and --bf16 says false.",
    ),
    "fp16 that the trainer switches on": (
        case({"fp16": {"enabled": False}}, command=f"{TRAINER} --bf16 --fp16"),
        "DSP806: fp16.enabled is false here, and --fp16 says true.",
    ),
}
"""A configuration, and the one thing that is found in it: rule and message."""


@pytest.mark.parametrize("name", BROKEN)
def test_another_way_to_break_a_rule(name: str) -> None:
    asked, expected = BROKEN[name]
    assert [f"{one.rule_id}: {one.found.message}" for one in judged(asked).findings] == [expected]


SILENT: dict[str, Case] = {
    "a total that follows from micro-batches": case({"train_batch_size": GONE}),
    "a total that follows from micro-batches on AutoTP's ranks": case(AUTOTP, command=NATIVE),
    "accumulation of the program's own": case({"managed_gradient_accumulation": False}),
    "no norm, and nothing that needs it": case({f"{ZERO}.compute_grad_norm": False, "gradient_clipping": 0}),
    "experts of AutoTP's ranks alone": case({**AUTOTP, "expert_parallel": {"enabled": True, "autoep_size": 2}}),
    "DeepEP with its tokens": case(
        {
            **EXPERTS,
            "expert_parallel.comm_backend": "deepep",
            "expert_parallel.comm_max_tokens_per_rank": 8192,
        }
    ),
    "a batch that elasticity works out": case(
        {**AUTOTP, "train_batch_size": 130, "elasticity": {"enabled": True, **ELASTIC}},
        command=NATIVE,
        version="0.18.9",
    ),
    "gradients that are summed": case({"gradient_predivide_factor": 2.0, "gradient_allreduce_op": "sum"}),
    "a rate that only a run could tell": case(command=f"{TRAINER} --learning_rate abc"),
    "a switch that only a run could tell": case(command=f"{TRAINER} --bf16 maybe"),
    "the same switch": case(command=f"{TRAINER} --bf16"),
}
"""What comes near to breaking a rule."""


@pytest.mark.parametrize("name", SILENT)
def test_what_comes_near_breaks_nothing(name: str) -> None:
    assert judged(SILENT[name]).findings == ()
