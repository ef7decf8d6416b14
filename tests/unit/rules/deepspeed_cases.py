"""For each DeepSpeed rule a configuration that breaks it and nothing else."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from planner.readers.deepspeed_launch import read_deepspeed_launches
from planner.readers.deepspeed_run import DeepSpeedRun, parse_deepspeed, read_deepspeed_runs

FILE = "ds_config.json"
NEWEST = "0.19.8"

SOUND: Mapping[str, Any] = {
    "train_batch_size": 128,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 4,
    "gradient_clipping": 1.0,
    "steps_per_print": 10,
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 100}},
    "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 500000000},
}
"""A run on 16 GPUs in two nodes that breaks nothing."""

GONE = object()
"""In the place of a value: the key is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A configuration with what is known besides.

    Args:
        changed: Keys with dots between them, and their values.
        command: Arguments of the program, behind `deepspeed ... train.py`; None for no script.
        launcher: What starts the program.
        gpus: GPUs that are said beside the file.
        version: The version that it is judged for.
    """

    changed: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    launcher: str = "deepspeed --num_nodes 2 --num_gpus 8 train.py"
    gpus: int | None = 16
    version: str = NEWEST

    @property
    def config(self) -> dict[str, Any]:
        """Return the configuration."""
        config = deepcopy(dict(SOUND))
        for path, value in self.changed.items():
            *parents, key = path.split(".")
            section = config
            for parent in parents:
                if not isinstance(section.get(parent), dict):
                    section[parent] = {}
                section = section[parent]
            if value is GONE:
                section.pop(key, None)
            else:
                section[key] = deepcopy(value)
        return config

    @property
    def text(self) -> str:
        """Return the configuration as JSON."""
        return json.dumps(self.config, indent=2)

    @property
    def runs(self) -> tuple[DeepSpeedRun, ...]:
        """Return the run that the configuration and the command make up."""
        script = f"{self.launcher} {self.command}\n" if self.command is not None else ""
        return read_deepspeed_runs(
            parse_deepspeed(self.text, file=FILE),
            [(launch, "") for launch in read_deepspeed_launches(script, file="train.sh")],
            version=self.version,
            num_gpus=self.gpus,
            gpus_per_node=8,
        )


def case(
    changed: Mapping[str, Any] | None = None,
    *,
    command: str | None = None,
    gpus: int | None = 16,
    version: str = NEWEST,
) -> Case:
    """Return the sound configuration with some keys changed."""
    return Case(changed=changed or {}, command=command, gpus=gpus, version=version)


NATIVE = f"--deepspeed --deepspeed_config {FILE}"
TRAINER = f"--deepspeed {FILE} --per_device_train_batch_size 2"
STAGE = "zero_optimization.stage"
ZERO_3 = {STAGE: 3}
AUTOTP = {"tensor_parallel": {"autotp_size": 2}, "train_batch_size": GONE}
"""Without a batch of its own: how it is counted over the ranks of AutoTP is a rule of its own."""

PIPE = {STAGE: 1, "zero_optimization.overlap_comm": GONE}
EXPERTS = {"expert_parallel": {"enabled": True, "autoep_size": 8}}
FP16 = {"bf16": GONE, "fp16": {"enabled": True}}

CASES: Mapping[str, Case] = {
    "S031": case({"gradient_clipping": GONE, "gradient_cliping": 1.0}),
    "S032": case({"my_own_notes": "the third try"}),
    "S033": case({"zero_optimization.stag": 2}),
    "S034": case({"sparse_gradients": False}),
    "S035": case({"zero_optimization.reduce_bucket_size": "5e8"}),
    "S036": case({"wall_clock_breakdown": "false"}),
    "S037": case({"zero_optimization.reduce_bucket_size": 0}),
    "S038": case({"communication_data_type": "fp8"}),
    "S039": case({"zero_optimization.cpu_offload": True}),
    "S040": case(
        {**ZERO_3, "zero_optimization.prefetch_bucket_size": 2, "zero_optimization.stage3_prefetch_bucket_size": 2}
    ),
    "S041": case({"zero_optimization.reduce_bucket_size": "auto"}, command=NATIVE),
    "DSP101": case({**AUTOTP, "tensor_parallel.autotp_size": 3}),
    "DSP102": case({"sequence_parallel_size": 3, "train_batch_size": GONE, "gradient_accumulation_steps": GONE}),
    "DSP103": case({"sequence_parallel_size": 4, "data_parallel_size": 2, "train_batch_size": 32}),
    "DSP104": case({"data_parallel_size": 16}),
    "DSP105": case({**AUTOTP, "sequence_parallel_size": 2}),
    "DSP106": case({**AUTOTP, "tensor_parallel.tp": {"tp_size": 4}}),
    "DSP107": case({"tensor_parallel": {"tp": {"tp_size": 4}}}),
    "DSP108": case({**AUTOTP, "tensor_parallel.autotp_size": 16}),
    "DSP109": case({**AUTOTP, **ZERO_3}, version="0.18.9"),
    "DSP110": case({**ZERO_3, "zero_optimization.zero_hpz_partition_size": 6}),
    "DSP111": case({**ZERO_3, "zero_optimization.zero_hpz_partition_size": 32}),
    "DSP112": case({**ZERO_3, "zero_optimization.zero_hpz_partition_size": 16}),
    "DSP113": case({**ZERO_3, "zero_optimization.mics_shard_size": 6}, version="0.18.9"),
    "DSP201": case({"pipeline": {"activation_checkpoint_interval": 1}}),
    "DSP202": case(PIPE, command=f"{NATIVE} --pipe-parallel-size 3"),
    "DSP203": case({STAGE: 1, "pipeline": {"activation_checkpoint_interval": 1}}),
    "DSP204": case({**PIPE, "train_batch_size": 16}, command=f"{NATIVE} --pipe-parallel-size 8"),
    "DSP205": case({**PIPE, "pipeline": {"partition": "uniform"}}),
    "DSP206": case({**PIPE, "pipeline": {"activation_checkpoint_interval": 1}, "managed_gradient_accumulation": False}),
    "DSP207": case({**PIPE, "pipeline": {"activation_checkpoint_interval": -1}}),
    "DSP208": case(
        {
            **PIPE,
            "pipeline": {"activation_checkpoint_interval": 1},
            "sequence_parallel_size": 2,
            "train_batch_size": GONE,
        }
    ),
    "DSP301": case({"expert_parallel": {"enabled": True, "autoep_size": 5}}),
    "DSP302": case({"expert_parallel": {"enabled": True, "autoep_size": 4, "expert_tensor_parallel_size": 2}}),
    "DSP303": case({**AUTOTP, "expert_parallel": {"enabled": True}}),
    "DSP304": case({**EXPERTS, **ZERO_3, "zero_optimization.zero_quantized_gradients": True}),
    "DSP305": case({"expert_parallel": {"enabled": True, "autoep_size": 8, "comm_backend": "deepep"}}),
    "DSP306": case(
        {
            "expert_parallel": {"enabled": True, "autoep_size": 8, "preset_model": "mixtral"},
            "tensor_parallel": {"autotp_size": 1, "preset_model": "qwen2"},
        }
    ),
    "DSP307": case({"expert_parallel": {"load_balance_coeff": 0.01}}),
    "DSP501": case({STAGE: GONE}),
    "DSP502": case({"zero_optimization.offload_param": {"device": "cpu"}}),
    "DSP503": case({STAGE: 0, "zero_optimization.offload_optimizer": {"device": "cpu"}}),
    "DSP504": case({**ZERO_3, "zero_optimization.offload_param": {"device": "nvme"}}),
    "DSP505": case({"zero_optimization.offload_optimizer": {"device": "nvme", "nvme_path": "/local"}}),
    "DSP506": case({"zero_optimization.offload_optimizer": {"device": "cpu", "ratio": 0.5}}),
    "DSP507": case({"zero_optimization.stage3_max_live_parameters": 1000000}),
    "DSP508": case({"zero_optimization.offload_optimizer": {"device": "cpu", "super_offload": True}}),
    "DSP509": case({"zero_optimization.offload_optimizer": {"device": "cpu", "nvme_path": "/local"}}),
    "DSP510": case({**ZERO_3, "zero_optimization.compute_grad_norm": False, "gradient_clipping": 0}),
    "DSP511": case({"zero_optimization.compute_grad_norm": False, "gradient_clipping": GONE}),
    "DSP512": case({"zero_optimization.allgather_bucket_size": 500000001}),
    "DSP513": case({"prescale_gradients": True}),
    "DSP514": case({**ZERO_3, "gradient_allreduce_op": "sum"}),
    "DSP515": case({"zero_optimization.legacy_stage1": True}),
    "DSP516": case(
        {**ZERO_3, "zero_optimization.zero_quantized_gradients": True, "zero_optimization.reduce_scatter": False}
    ),
    "DSP517": case({**ZERO_3, "zero_optimization.zero_quantized_gradients": True, "train_batch_size": 96}, gpus=12),
    "DSP518": case({**ZERO_3, "zero_optimization.elastic_checkpoint": True}),
    "DSP519": case({"zero_optimization": True}),
    "DSP520": case({STAGE: 1, "data_types": {"grad_accum_dtype": "fp32"}}),
    "DSP521": case({"allgather_size": 500000000}),
    "DSP522": case({**ZERO_3, "zero_optimization.stage3_max_live_parameters": 1000000}),
    "DSP601": case({"activation_checkpointing": {"contiguous_memory_optimization": True, "number_checkpoints": 32}}),
    "DSP602": case(
        {"activation_checkpointing": {"contiguous_memory_optimization": True, "partition_activations": True}}
    ),
    "DSP603": case({"activation_checkpointing": {"partition_activations": True}}, command=NATIVE),
    "DSP701": case({"fp16": {"enabled": True}}),
    "DSP702": case({"fp16": {"initial_scale_power": 12}}),
    "DSP703": case({"bfloat16": {"enabled": True}}),
    "DSP704": case({"zero_optimization": GONE, **FP16, "fp16.fp16_master_weights_and_grads": True}),
    "DSP705": case({"bf16.bf16_optimizer_states": True}),
    "DSP706": case({"bf16.bf16_master_weights_and_grads": True}),
    "DSP707": case({"zero_optimization": GONE, "data_types": {"grad_accum_dtype": "fp32"}}),
    "DSP708": case({"data_types": {"param_dtype": "fp16"}}),
    "DSP709": case({"data_types": {"grad_accum_dtype": "FP32"}}),
    "DSP710": case({**FP16, "fp16.loss_scale": -1}),
    "DSP711": case({**FP16, "fp16.loss_scale": 128, "optimizer.type": "Lamb", "zero_allow_untested_optimizer": True}),
    "DSP712": case({"data_types": {"keep_in_fp32_modules": "norm"}}),
    "DSP801": case({"train_batch_size": 130}),
    "DSP802": case({"train_batch_size": GONE, "train_micro_batch_size_per_gpu": GONE}),
    "DSP803": case({"gradient_accumulation_steps": 0, "train_batch_size": GONE}),
    "DSP804": case({"tensor_parallel": {"autotp_size": 2}}),
    "DSP805": case({"steps_per_print": 0}),
    "DSP806": case({"train_micro_batch_size_per_gpu": 4, "train_batch_size": 256}, command=TRAINER),
    "DSP807": case({"gradient_clipping": -1}),
    "DSP808": case({"train_batch_size": 8, "gradient_accumulation_steps": GONE}),
    "DSP810": case({"optimizer.type": "sgd", "optimizer.params": {"lr": 0.1}}),
    "DSP811": case({"optimizer.params.max_grad_norm": 1.0}),
    "DSP812": case({"optimizer.params.weight_decy": 0.1}),
    "DSP813": case({"optimizer.params.amsgrad": True}),
    "DSP814": case({"optimizer.type": GONE}),
    "DSP815": case({"optimizer.type": "SGD", "optimizer.params": {"lr": 0.1}}),
    "DSP816": case(
        {
            "optimizer.type": "Lamb",
            "zero_allow_untested_optimizer": True,
            "zero_optimization.offload_optimizer": {"device": "cpu"},
        }
    ),
    "DSP817": case({**ZERO_3, "optimizer.type": "Muon"}),
    "DSP820": case({"scheduler.type": "WarmupDecay"}),
    "DSP531": case(
        {**ZERO_3, "zero_optimization.offload_optimizer": {"device": "cpu", "ratio": 0.3}, "scheduler": GONE}
    ),
    "DSP532": case(
        {
            **ZERO_3,
            "zero_optimization.offload_optimizer": {"device": "cpu", "ratio": 0.3},
            "zero_optimization.sub_group_size": 20000000,
        }
    ),
    "DSP533": case(
        {**ZERO_3, "zero_optimization.offload_optimizer": {"device": "nvme", "nvme_path": "/local", "ratio": 0.3}}
    ),
    "DSP534": case(
        {
            **ZERO_3,
            "zero_optimization.offload_optimizer": {"device": "cpu", "ratio": 0.3},
            "zero_optimization.sub_group_size": 20000000,
            "optimizer.params.torch_adam": True,
            "scheduler": GONE,
        }
    ),
    "DSP821": case({"scheduler.type": "WarmupDecayLR"}),
    "DSP822": case({"scheduler.params.warmup_num_steps": 0}),
    "DSP823": case({"log_level": "warn"}),
    "DSP824": case({"data_efficiency": {"data_sampling": {"enabled": True, "curriculum_learning": {"enabled": True}}}}),
}

SOUND_CASES: Mapping[str, Case] = {
    "ZeRO-2": case(),
    "ZeRO-2 under its command": case(command=NATIVE),
    "ZeRO-2 with Trainer": case(command=TRAINER),
    "the number of GPUs is open": case(gpus=None),
    "stage 3 and second copies": case({**ZERO_3, "zero_optimization.zero_hpz_partition_size": 8}),
    "stage 3 and disks": case(
        {
            **ZERO_3,
            "zero_optimization.offload_param": {"device": "nvme", "nvme_path": "/local", "buffer_count": 5},
            "zero_optimization.offload_optimizer": {"device": "cpu", "pin_memory": True, "ratio": 0.3},
            "zero_optimization.sub_group_size": 20000000,
            "scheduler": GONE,
        }
    ),
    "numbers as Python writes them": case({"zero_optimization.reduce_bucket_size": 5e8, "fp16": {"enabled": False}}),
    "pipeline stages": case({**PIPE, "train_batch_size": 64}, command=f"{NATIVE} --pipe-parallel-size 2"),
    "sequence parallelism": case({"sequence_parallel_size": 4, "train_batch_size": 32}),
    "no ZeRO, fp16": case({**FP16, "zero_optimization": GONE}),
    "auto and Trainer": case(
        {
            "train_batch_size": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_optimization.reduce_bucket_size": "auto",
        },
        command=TRAINER,
    ),
    "an earlier version": case({"sparse_gradients": False}, version="0.18.9"),
}
"""Configurations that break nothing."""
