"""vLLM: what stands in the JSON values that pass caches on, balance experts and draft tokens.

Connectors and keys are those of vLLM 0.32.0; a framework test holds them against vLLM's own.
"""

from collections.abc import Iterator
from difflib import get_close_matches

from planner.readers.flag_tables import Framework
from planner.readers.vllm_run import VllmRun
from planner.rules.rule import Found, FoundAt, Rule, rule


@rule(
    id="VLL830",
    name="transfer-role",
    framework=Framework.VLLM,
    prevents="ValueError: Unsupported kv_role: ..., or: Please specify kv_role when kv_connector is set",
    found_at=FoundAt.START,
    source="vllm/config/kv_transfer.py: KVTransferConfig.__post_init__",
)
def transfer_role(run: VllmRun) -> Iterator[Found]:
    """A server that passes its cache on says which way: kv_producer, kv_consumer or kv_both."""
    config = run.section("kv_transfer_config")
    if not config:
        return
    role, connector = config.get("kv_role"), config.get("kv_connector")
    if connector is not None and role is None:
        yield Found(
            place=run.place("kv_transfer_config"),
            message=f"kv_connector {connector} without kv_role.",
            hint="Add kv_role: kv_producer, kv_consumer or kv_both.",
        )
    elif connector is None and role is not None:
        yield Found(
            place=run.place("kv_transfer_config"),
            message=f"kv_role {role} without kv_connector.",
            hint="Name the connector, such as NixlConnector.",
        )
    elif role is not None and role not in {"kv_producer", "kv_consumer", "kv_both"}:
        yield Found(
            place=run.place("kv_transfer_config"),
            message=f"kv_role is {role}.",
            hint="Use kv_producer, kv_consumer or kv_both.",
        )


CONNECTORS = (
    "DecodeBenchConnector",
    "ExampleConnector",
    "ExampleHiddenStatesConnector",
    "FlexKVConnectorV1",
    "HF3FSKVConnector",
    "HiSparseConnector",
    "LMCacheConnectorV1",
    "LMCacheMPConnector",
    "MoRIIOConnector",
    "MooncakeConnector",
    "MooncakeStoreConnector",
    "MultiConnector",
    "NixlConnector",
    "NixlPullConnector",
    "NixlPushConnector",
    "OffloadingConnector",
    "SimpleCPUOffloadConnector",
)
"""What vLLM 0.32.0 registers (vllm/distributed/kv_transfer/kv_connector/factory.py)."""


@rule(
    id="VLL831",
    name="known-connector",
    framework=Framework.VLLM,
    prevents="ValueError: Unsupported connector type: ...",
    found_at=FoundAt.START,
    source="vllm/distributed/kv_transfer/kv_connector/factory.py: KVConnectorFactory.get_connector_class",
    since="0.32.0",
)
def known_connector(run: VllmRun) -> Iterator[Found]:
    """The connector is one of vLLM's, or `kv_connector_module_path` says where it is."""
    config = run.section("kv_transfer_config")
    connector = config.get("kv_connector")
    if isinstance(connector, str) and not config.get("kv_connector_module_path") and connector not in CONNECTORS:
        near = get_close_matches(connector.lower(), [name.lower() for name in CONNECTORS], n=1, cutoff=0.6)
        meant = next((name for name in CONNECTORS if near and name.lower() == near[0]), None)
        yield Found(
            place=run.place("kv_transfer_config"),
            message=f"kv_connector is {connector}.",
            hint=f"Use {meant}." if meant else f"Use one of {', '.join(CONNECTORS)}, or name its module.",
        )


SECTIONS = {
    "eplb_config": frozenset(
        [
            "window_size",
            "step_interval",
            "num_redundant_experts",
            "log_balancedness",
            "log_balancedness_interval",
            "use_async",
            "policy",
            "communicator",
            "enable_migration_batching",
        ]
    ),
    "kv_transfer_config": frozenset(
        [
            "kv_connector",
            "engine_id",
            "kv_buffer_device",
            "kv_role",
            "kv_port",
            "kv_connector_extra_config",
            "kv_connector_module_path",
            "enable_permute_local_kv",
            "kv_load_failure_policy",
        ]
    ),
    "speculative_config": frozenset(
        [
            "enforce_eager",
            "num_speculative_tokens",
            "model",
            "method",
            "draft_tensor_parallel_size",
            "tensor_parallel_size",
            "quantization",
            "moe_backend",
            "attention_backend",
            "kv_cache_dtype",
            "max_model_len",
            "revision",
            "code_revision",
            "index_share_for_mtp_iteration",
            "disable_padded_drafter_batch",
            "disable_eagle_block_drop",
            "use_local_argmax_reduction",
            "use_heterogeneous_vocab",
            "prompt_lookup_max",
            "prompt_lookup_min",
            "parallel_drafting",
            "target_model_config",
            "target_parallel_config",
            "num_speculative_tokens_per_batch_size",
            "draft_model_config",
            "draft_parallel_config",
            "suffix_decoding_max_tree_depth",
            "suffix_decoding_max_cached_requests",
            "suffix_decoding_max_spec_factor",
            "suffix_decoding_min_token_prob",
            "draft_load_config",
            "rejection_sample_method",
            "synthetic_acceptance_rates",
            "synthetic_acceptance_length",
            "enable_adaptive_verification",
            "draft_sample_method",
            "dspark_draft_topk",
        ]
    ),
}
"""Keys of the JSON values that decide a layout, at 0.32.0 (EPLBConfig, KVTransferConfig, SpeculativeConfig)."""


@rule(
    id="VLL840",
    name="unknown-key-of-a-section",
    framework=Framework.VLLM,
    prevents="pydantic ValidationError: Unexpected keyword argument",
    found_at=FoundAt.START,
    source="vllm/config/parallel.py: EPLBConfig, kv_transfer.py: KVTransferConfig, speculative.py: SpeculativeConfig",
    since="0.32.0",
)
def unknown_key_of_a_section(run: VllmRun) -> Iterator[Found]:
    """`--eplb-config`, `--kv-transfer-config` and `--speculative-config` take the keys of their class and no others."""
    for dest, known in SECTIONS.items():
        for key in run.section(dest):
            if key not in known:
                near = get_close_matches(key, sorted(known), n=1)
                yield Found(
                    place=run.place(dest),
                    message=f"--{dest.replace('_', '-')} has no key {key}.",
                    hint=f"Did you mean {near[0]}?" if near else "Remove it.",
                )


@rule(
    id="VLL832",
    name="nixl-decode-context",
    framework=Framework.VLLM,
    prevents="AssertionError: decode_context_parallel_size=... must be 1 or equal to the NIXL transfer "
    "parallel size=..., or: PD with decode_context_parallel_size > 1 is only supported for MLA models.",
    found_at=FoundAt.START,
    source="vllm/config/vllm.py: VllmConfig.__post_init__",
    since="0.30.0",
)
def nixl_decode_context(run: VllmRun) -> Iterator[Found]:
    """What NIXL passes on lies whole on every rank, or in parts on all: dcp is 1 or tp (pcp, if that is larger).

    Parts are for multi-head latent attention alone.
    """
    if run.dcp == 1 or run.section("kv_transfer_config").get("kv_connector") != "NixlConnector":
        return
    whole = max(run.tp, run.pcp)
    if run.dcp != whole or not run.model.is_latent:
        yield Found(
            place=run.place("decode_context_parallel_size"),
            message=f"dcp {run.dcp} with tp {run.tp}, pcp {run.pcp} and NixlConnector.",
            hint=f"Use dcp 1 or {whole}." if run.model.is_latent else "Remove it.",
        )


@rule(
    id="VLL833",
    name="drafts-of-no-model-need-a-number",
    framework=Framework.VLLM,
    prevents="ValueError: num_speculative_tokens must be provided with speculative model",
    found_at=FoundAt.START,
    source="vllm/config/speculative.py: SpeculativeConfig._verify_args",
)
def drafts_of_no_model_need_a_number(run: VllmRun) -> Iterator[Found]:
    """Where no draft model says how many tokens it guesses, `num_speculative_tokens` does: with the method ngram."""
    config = run.section("speculative_config")
    if config.get("method") == "ngram" and config.get("num_speculative_tokens") is None:
        yield Found(
            place=run.place("speculative_config"),
            message="--speculative-config has the method ngram and no num_speculative_tokens.",
            hint="Say how many tokens to guess, such as 4.",
        )


@rule(
    id="VLL834",
    name="nixl-consumer-stages",
    framework=Framework.VLLM,
    prevents="NotImplementedError: NixlPushConnector consumer (decode) does not support pipeline_parallel_size > 1., "
    "or: NixlPushConnector does not support decode_context_parallel_size > 1.",
    found_at=FoundAt.START,
    source="vllm/distributed/kv_transfer/kv_connector/v1/nixl/base_worker.py: NixlBaseConnectorWorker.__init__, "
    "connector.py: NixlPushConnector.__init__",
    since="0.32.0",
)
def nixl_consumer_stages(run: VllmRun) -> Iterator[Found]:
    """NIXL passes caches on to decode engines without pipeline stages, and its pushing connector shares no contexts."""
    config = run.section("kv_transfer_config")
    connector = config.get("kv_connector")
    nixl = {"NixlConnector", "NixlPullConnector", "NixlPushConnector"}
    if connector in nixl and config.get("kv_role") == "kv_consumer" and run.pp > 1:
        yield Found(
            place=run.place("pipeline_parallel_size"),
            message=f"pp {run.pp} with {connector} as a consumer.",
            hint="Use tensor parallelism for decode; prefill engines may have stages, with NixlPushConnector.",
        )
    if connector == "NixlPushConnector" and run.dcp > 1:
        yield Found(
            place=run.place("decode_context_parallel_size"),
            message=f"dcp {run.dcp} with NixlPushConnector.",
            hint="Use dcp 1, or NixlConnector for multi-head latent attention.",
        )


RULES: tuple[Rule[VllmRun], ...] = (
    transfer_role,
    known_connector,
    nixl_decode_context,
    nixl_consumer_stages,
    drafts_of_no_model_need_a_number,
    unknown_key_of_a_section,
)
