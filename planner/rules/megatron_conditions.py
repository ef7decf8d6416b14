"""Conditions of Megatron-LM runs that several tables ask for."""

from planner.rules.conditions import fact, given, on, one_of

FP8, FP4 = given("--fp8-format", "fp8"), given("--fp4-format", "fp4")

OP_FUSER = on("--use-transformer-engine-op-fuser")

MEGATRON_FSDP, TORCH_FSDP = on("--use-megatron-fsdp"), on("--use-torch-fsdp2")

FULL, SELECTIVE = (one_of("--recompute-granularity", kind) for kind in ("full", "selective"))

FINE_OFFLOADING = on("--fine-grained-activation-offloading")

GRADIENT_FUSION = fact(
    "gradient accumulation fusion (without --no-gradient-accumulation-fusion)",
    lambda run: run.said("gradient_accumulation_fusion") is True,
    "gradient_accumulation_fusion",
)
