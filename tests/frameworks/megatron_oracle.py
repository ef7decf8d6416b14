# ruff: noqa: PLC0415 - Megatron can be imported only after what it lacks here has been stood in for
"""Megatron-LM's own verdict on an argument list, without a GPU. Runs inside the framework environment only.

Reads one JSON list of jobs on standard input, writes one JSON list of verdicts on standard output. A job is
`{"arguments": [...], "environment": {...}, "world_size": n, "gpus_per_node": n, "capability": [major, minor],
"pipeline_ranks": [...], "last_level": name}`. Each job runs in a fork of this process, so that Megatron is imported
once and its globals are fresh. The levels, each of which Megatron's own code decides:

1. parse: `megatron.training.arguments.parse_args`;
2. validate: `validate_args`, at the job's world size;
3. config: the model, optimizer and data-parallel configuration objects that `pretrain_gpt.py` builds;
4. microbatches: the micro-batch calculator, and the rule of the interleaved schedule (first checked in a real step);
5. groups: every process group of this world size, under torch's fake backend;
6. build: the model of the asked pipeline ranks on the meta device, by the builder that the training program uses, and
   the parameters each holds.

`last_level` says where to stop: parse, microbatches or build.

What a machine without a GPU lacks is stood in for: the device capability, streams, and the layers of Transformer Engine
(`megatron_transformer_engine`).
"""

import argparse
import contextlib
import dataclasses
import importlib.machinery
import io
import json
import logging
import os
import sys
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typing_extensions

from tests.frameworks.forks import answer_in_a_fork
from tests.frameworks.megatron_transformer_engine import VERSION, RMSNormGated, install

CONFIG_FIELDS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "kv_channels",
    "activation_func",
    "activation_func_clamp_value",
    "glu_linear_offset",
    "gated_linear_unit",
    "bias_activation_fusion",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "qk_l2_norm",
    "attention_output_gate",
    "softmax_type",
    "window_size",
    "window_attn_skip_freq",
    "no_rope_freq",
    "linear_attention_freq",
    "experimental_attention_variant",
    "normalization",
    "layernorm_epsilon",
    "layernorm_zero_centered_gamma",
    "rotary_interleaved",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "rope_scaling",
    "rope_scaling_factor",
    "rope_type",
    "rotary_scaling_factor",
    "yarn_correction_range_round_to_int",
    "share_embeddings_and_output_weights",
    "attention_dropout",
    "hidden_dropout",
    "attention_backend",
    "sequence_parallel",
    "recompute_granularity",
    "recompute_method",
    "recompute_num_layers",
    "recompute_modules",
    "overlap_p2p_comm",
    "fp8",
    "fp8_recipe",
    "params_dtype",
    "cp_comm_type",
    "hierarchical_context_parallel_sizes",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "moe_layer_freq",
    "moe_router_topk",
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_num_groups",
    "moe_router_group_topk",
    "moe_router_topk_scaling_factor",
    "moe_router_enable_expert_bias",
    "moe_router_load_balancing_type",
    "moe_token_dispatcher_type",
    "moe_grouped_gemm",
    "mtp_num_layers",
)
"""Fields of the model's configuration that a verdict shows, as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One argument list and the machine it is meant for."""

    arguments: list[str]
    environment: dict[str, str]
    world_size: int
    gpus_per_node: int
    capability: tuple[int, int]
    pipeline_ranks: list[int]
    last_level: str = "build"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageVerdict:
    """What Megatron built for one pipeline rank: layers of each chunk, parameters in all and of routed experts."""

    pipeline_rank: int
    layers: list[int]
    parameters: int
    expert_parameters: int


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What Megatron said; `failed_level` is empty when every level passed."""

    failed_level: str = ""
    error: str = ""
    data_parallel_size: int = 0
    num_microbatches: int = 0
    padded_vocab_size: int = 0
    config: dict[str, str] = field(default_factory=dict)
    stages: list[StageVerdict] = field(default_factory=list)


class _Nothing:
    """Stands in for CUDA streams and events, which constructors make and nobody waits for here."""

    def __init__(self, *_args: object, **_keywords: object) -> None:
        pass

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_args, **_keywords: None


def stand_in_for_triton() -> None:
    """Replace the one module that imports triton unguarded (it moved after 0.18); triton is large and needs a GPU."""
    for name in ("megatron.core.transformer.moe.ops.paged_stash", "megatron.core.transformer.moe.paged_stash"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__getattr__ = _unavailable  # type: ignore[method-assign]
        sys.modules[name] = module


def _unavailable(attribute: str) -> None:
    if attribute.startswith("__"):
        raise AttributeError(attribute)


def claim_transformer_engine() -> None:
    """Say which version is there, and that it has the kernels whose presence the configuration objects check."""
    import packaging.version
    from megatron.core import utils as core_utils
    from megatron.core.models.common.embeddings import rope_utils, yarn_rotary_pos_embedding
    from megatron.core.ssm import mamba_mixer
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer import transformer_config

    core_utils._te_version = packaging.version.Version(VERSION)
    for name in ("fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd"):
        if getattr(rope_utils, name, None) is None:
            setattr(rope_utils, name, _Nothing())
    yarn_rotary_pos_embedding.get_pos_emb_on_this_cp_rank = lambda table, *_args: table  # it pins memory
    transformer_config._validate_dsa_kernel_backend_dependencies = lambda _backend: None
    megatron_random.CudaRNGStatesTracker.fork = lambda _tracker, *_args: contextlib.nullcontext()
    mamba_mixer.HAVE_MAMBA_SSM = True
    mamba_mixer.ExtendedRMSNorm = RMSNormGated


def stand_in_for_the_device(job: Job) -> None:
    """Answer Megatron's questions about the GPU with the job's own."""
    import torch

    major, minor = job.capability
    properties = types.SimpleNamespace(
        major=major, minor=minor, multi_processor_count=132, total_memory=80 << 30, name="stand-in"
    )
    torch.cuda.get_device_capability = lambda *_args, **_keywords: job.capability
    torch.cuda.get_device_properties = lambda *_args, **_keywords: properties
    torch.cuda.current_device = lambda: torch.device("meta")
    torch.cuda.device_count = lambda: job.gpus_per_node
    torch.Tensor.cuda = lambda tensor, *_args, **_keywords: tensor
    torch.cuda.Stream = torch.cuda.Event = _Nothing
    torch.cuda.current_stream = lambda *_args: _Nothing()


class RefusalError(Exception):
    """A level failed; carries Megatron's own words."""

    def __init__(self, level: str, error: str) -> None:
        super().__init__(error)
        self.level = level
        self.error = error


@contextlib.contextmanager
def level(name: str) -> Iterator[None]:
    """Turn whatever Megatron raises inside into a refusal at this level; its chatter is swallowed."""
    chatter = io.StringIO()
    try:
        with contextlib.redirect_stdout(chatter), contextlib.redirect_stderr(chatter):
            yield
    except SystemExit:
        last = (chatter.getvalue().strip().splitlines() or ["exited"])[-1]
        raise RefusalError(name, last) from None
    except Exception as error:  # noqa: BLE001 - whatever Megatron raises is its answer
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise RefusalError(name, str(error) or f"{frame.line} ({Path(frame.filename).name}:{frame.lineno})") from None


def judge(job: Job) -> Verdict:
    """Return what Megatron says about one job."""
    verdict = Verdict()
    os.environ.update(job.environment, WORLD_SIZE=str(job.world_size), RANK="0", LOCAL_RANK="0")
    stand_in_for_the_device(job)
    try:
        _judge(job, verdict)
    except RefusalError as refusal:
        verdict.failed_level, verdict.error = refusal.level, refusal.error
    return verdict


def _judge(job: Job, verdict: Verdict) -> None:
    from megatron.core import num_microbatches_calculator
    from megatron.training import argument_utils
    from megatron.training import arguments as training_arguments
    from megatron.training.vocab_utils import calculate_padded_vocab_size

    sys.argv = ["pretrain_gpt.py", *job.arguments]
    with level("parse"):
        args = training_arguments.parse_args()
    if job.last_level == "parse":
        return
    with level("validate"):
        args = training_arguments.validate_args(args, {"tokenizer_type": "GPT2BPETokenizer"})
    verdict.data_parallel_size = args.data_parallel_size
    with level("config"):
        hybrid = args.hybrid_layer_pattern is not None
        from_args = argument_utils.hybrid_config_from_args if hybrid else argument_utils.gpt_config_from_args
        model_config = from_args(args)
        argument_utils.pretrain_cfg_container_from_args(args, model_config)
        model_config.transformer.use_te_rng_tracker = args.te_rng_tracker  # Megatron's programs leave it out
        model_config.finalize()
        if args.padded_vocab_size is None:
            args.padded_vocab_size = calculate_padded_vocab_size(
                args.vocab_size,
                args.make_vocab_size_divisible_by,
                args.tensor_model_parallel_size,
                logging_enabled=False,
            )
    verdict.padded_vocab_size = args.padded_vocab_size
    verdict.config = {name: _shown(getattr(model_config, name, None)) for name in CONFIG_FIELDS}
    with level("microbatches"):
        num_microbatches_calculator.init_num_microbatches_calculator(
            0,
            args.rampup_batch_size,
            args.global_batch_size,
            args.micro_batch_size,
            args.data_parallel_size,
            args.decrease_batch_size_if_needed,
        )
        verdict.num_microbatches = num_microbatches_calculator.get_num_microbatches()
        _check_interleaving(args, verdict.num_microbatches)
    if job.last_level == "microbatches":
        return
    with level("groups"):
        _initialize_groups(job, args, rank=0)
    if job.pipeline_ranks:
        with level("build"):
            verdict.stages = [_build(job, args, model_config, rank) for rank in job.pipeline_ranks]


def _shown(value: Any) -> str:
    return str(getattr(value, "__name__", getattr(value, "name", value)))


def _check_interleaving(args: Any, num_microbatches: int) -> None:
    """Raise what `forward_backward_pipelining_with_interleaving` raises at its first step."""
    if not args.virtual_pipeline_model_parallel_size:
        return
    stages = args.pipeline_model_parallel_size
    group = args.microbatch_group_size_per_vp_stage or stages
    if not stages <= group <= num_microbatches or 0 < num_microbatches % group < stages:
        raise ValueError(f"interleaved schedule: {num_microbatches} micro-batches, groups of {group}, pp {stages}")


def _initialize_groups(job: Job, args: Any, *, rank: int) -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        if dist.get_rank() == rank:
            return
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=job.world_size)
    parallel_state.initialize_model_parallel(
        args.tensor_model_parallel_size,
        args.pipeline_model_parallel_size,
        args.virtual_pipeline_model_parallel_size,
        context_parallel_size=args.context_parallel_size,
        hierarchical_context_parallel_sizes=args.hierarchical_context_parallel_sizes,
        num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
        expert_model_parallel_size=args.expert_model_parallel_size,
        expert_tensor_parallel_size=args.expert_tensor_parallel_size,
        order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
        create_gloo_process_groups=False,
    )


def _build(job: Job, args: Any, model_config: Any, pipeline_rank: int) -> StageVerdict:
    """Build every chunk of one pipeline rank on the meta device, on its lowest global rank."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection

    ranks_per_stage = job.world_size // args.pipeline_model_parallel_size
    if args.use_tp_pp_dp_mapping:
        ranks_per_stage = args.tensor_model_parallel_size * args.context_parallel_size
    _initialize_groups(job, args, rank=pipeline_rank * ranks_per_stage)
    if parallel_state.get_pipeline_model_parallel_rank() != pipeline_rank:
        raise ValueError(f"rank {pipeline_rank * ranks_per_stage} is not on pipeline rank {pipeline_rank}")
    model_config.transformer.perform_initialization = False
    # Both want CUDA and have no parameters.
    model_config.transformer.gradient_accumulation_fusion = False
    model_config.transformer.moe_permute_fusion = False
    builder = model_config.get_builder_cls()(model_config)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    layers: list[int] = []
    named: list[tuple[str, int]] = []
    for chunk in range(args.virtual_pipeline_model_parallel_size or 1):
        stage = chunk if args.virtual_pipeline_model_parallel_size else None
        with torch.device("meta"):
            model = builder.build_model(
                groups,
                pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
                post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
                vp_stage=stage,
            )
        layers.append(len(model.decoder.layers))
        named += [(name, parameter.numel()) for name, parameter in model.named_parameters()]
    return StageVerdict(
        pipeline_rank=pipeline_rank,
        layers=layers,
        parameters=sum(count for _, count in named),
        expert_parameters=sum(count for name, count in named if ".experts." in name),
    )


def judge_in_a_fork(job: Job) -> dict[str, Any]:
    """Return the verdict on one job, found in a fork so that nothing of it stays behind."""
    try:
        return dataclasses.asdict(answer_in_a_fork(judge, job))
    except ChildProcessError as death:
        return dataclasses.asdict(Verdict(failed_level="crash", error=str(death)))


def prepare_imports() -> None:
    """Make megatron-core importable on Python 3.11 without triton, and quiet."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if not hasattr(typing, "override"):  # megatron-core 0.19 imports it from typing, which has it from Python 3.12
        typing.override = typing_extensions.override  # type: ignore[attr-defined]
    stand_in_for_triton()


def remember_help_texts() -> None:
    """Build the parser once, and keep what it reads from Megatron's source: every job builds it anew, mostly so."""
    from megatron.training.argument_utils import ArgumentGroupFactory
    from megatron.training.arguments import add_megatron_arguments

    read = ArgumentGroupFactory._get_field_docstrings
    known: dict[type, dict[str, str]] = {}

    def remembered(factory: Any, source: type) -> dict[str, str]:
        if source not in known:
            known[source] = read(factory, source)
        return dict(known[source])

    ArgumentGroupFactory._get_field_docstrings = remembered
    add_megatron_arguments(argparse.ArgumentParser())


def main() -> None:
    """Judge every job on standard input."""
    prepare_imports()
    install()
    import megatron.training.models  # noqa: F401 - imported once, before the forks

    claim_transformer_engine()
    remember_help_texts()
    jobs = [Job(**{**job, "capability": tuple(job["capability"])}) for job in json.load(sys.stdin)]
    json.dump([judge_in_a_fork(job) for job in jobs], sys.stdout)


if __name__ == "__main__":
    main()
