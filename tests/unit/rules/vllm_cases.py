"""For each vLLM rule a command that breaks it and nothing else, judged on a node of 8 GPUs."""

from collections.abc import Mapping

DENSE = "meta-llama/Llama-3.1-70B-Instruct"
"""64 attention heads, 8 key/value heads, 80 layers, 131,072 positions."""

EXPERTS = "Qwen/Qwen3-235B-A22B"
"""64 attention heads, 4 key/value heads, 94 layers, 128 experts."""

LATENT = "deepseek-ai/DeepSeek-V3"
"""Latent attention of 128 heads."""


def serve(words: str, *, model: str = DENSE, before: str = "") -> str:
    """Return a script that starts one server."""
    return f"#!/usr/bin/env bash\n{before}\nvllm serve {model} \\\n    {words}\n"


SOUND: Mapping[str, str] = {
    "dense": serve("--tensor-parallel-size 8 --max-model-len 32k --max-num-seqs 256 --max-num-batched-tokens 8192"),
    "experts": serve("-tp 4 -dp 2 --enable-expert-parallel", model=EXPERTS),
    "two nodes": serve("-tp 8 -pp 2 --nnodes 2 --node-rank 1 --master-addr 10.0.0.1"),
    "nested": serve("-tp 8 --kv-transfer-config.kv_connector NixlConnector --kv-transfer-config.kv_role kv_both"),
    "level": serve("-tp 8 -O3 --no-enable-prefix-caching"),
}

CASES: Mapping[str, str] = {
    "S002": serve("-tp 8 --max-num 5"),
    "S003": serve("--tensor-parallel-s 8"),
    "VLL101": serve("-tp 6"),
    "VLL102": serve("-tp 8", model=EXPERTS),
    "VLL103": serve("-tp 4", model="microsoft/phi-4"),
    "VLL110": serve("-tp 8 -pp 2"),
    "VLL111": serve("-tp 16 -dcp 2 --nnodes 2"),
    "VLL112": serve("-tp 8 -pp 2 --nnodes 3"),
    "VLL113": serve("-tp 8 -pp 2 --nnodes 2 --node-rank 2"),
    "VLL114": serve("-tp 8 -pp 2 --nnodes 2 --distributed-executor-backend ray"),
    "VLL120": serve("-tp 4 -dcp 8", model=LATENT),
    "VLL121": serve("-tp 2 -pcp 4 -dcp 2", model=LATENT),
    "VLL122": serve("-tp 8 -dcp 4", model=EXPERTS),
    "VLL130": serve("-tp 1 -dp 2 -dpl 4", model=EXPERTS),
    "VLL131": serve("-tp 4 -dp 4", model=EXPERTS),
    "VLL132": serve("-tp 4 --data-parallel-external-lb", model=EXPERTS),
    "VLL133": serve("-tp 4 -dp 2 -dpl 1 --data-parallel-external-lb --data-parallel-hybrid-lb -dpn 0", model=EXPERTS),
    "VLL134": serve("-tp 4 -dp 2 --data-parallel-external-lb", model=EXPERTS),
    "VLL135": serve("-tp 4 -dp 2 -dpn 2", model=EXPERTS),
    "VLL136": serve("-tp 4 -dp 2 --data-parallel-hybrid-lb", model=EXPERTS),
    "VLL137": serve("-tp 4 -dp 4 -dpl 1 --nnodes 2", model=EXPERTS),
    "VLL140": serve("-tp 4 -pp 2", before="export VLLM_PP_LAYER_PARTITION=40,41"),
    "VLL141": serve("-pp 81 --nnodes 81"),
    "VLL301": serve("-tp 4 --enable-eplb", model=EXPERTS),
    "VLL302": serve("--enable-eplb --enable-expert-parallel", model=EXPERTS),
    "VLL303": serve("-tp 4 --enable-expert-parallel --eplb-config.num_redundant_experts 4", model=EXPERTS),
    "VLL304": serve("-tp 8 --enable-expert-parallel"),
    "VLL305": serve(
        "-tp 4 --enable-expert-parallel --enable-eplb --eplb-config.num_redundant_experts 3", model=EXPERTS
    ),
    "VLL306": serve("-tp 4 -dp 2 --data-parallel-external-lb -dpn 0"),
    "VLL310": serve("-tp 4 -dp 2 --enable-expert-parallel --enable-elastic-ep", model=EXPERTS),
    "VLL311": serve(
        "-tp 4 --enable-expert-parallel --enable-eplb"
        """ --eplb-config '{"use_async": true, "communicator": "pynccl"}'""",
        model=EXPERTS,
    ),
    "VLL312": serve(
        """-tp 4 --enable-expert-parallel --enable-eplb --eplb-config '{"window_size": 0}'""", model=EXPERTS
    ),
    "VLL320": serve("-tp 4 --enable-expert-parallel --enable-dbo", model=EXPERTS),
    "VLL321": serve(
        "-tp 4 --enable-expert-parallel --enable-dbo --all2all-backend nixl_ep --dbo-decode-token-threshold 1",
        model=EXPERTS,
    ),
    "VLL801": serve("-tp 8 --max-num-seqs 0"),
    "VLL802": serve("-tp 8 --gpu-memory-utilization 90"),
    "VLL810": serve("-tp 8 --max-num-seqs 4096 --max-num-batched-tokens 2048"),
    "VLL811": serve("-tp 8 --no-enable-chunked-prefill --max-num-batched-tokens 2048 --max-model-len 4096"),
    "VLL812": serve("-tp 8 --max-num-active-seqs 9 --max-num-seqs 8"),
    "VLL813": serve("-tp 8 --long-prefill-token-threshold 8192 --max-model-len 4096"),
    "VLL814": serve("-tp 8 --max-num-batched-tokens 8192 --max-num-seqs 1 --max-model-len 4096"),
    "VLL815": serve("-tp 8 --max-model-len 200000"),
    "VLL816": serve(
        "-tp 8 --enable-lora --max-num-seqs 512 --max-num-batched-tokens 1024"
        """ --speculative-config '{"num_speculative_tokens": 3, "model": "d"}'"""
    ),
    "VLL820": "vllm serve --model meta-llama/Llama-3.1-70B-Instruct -tp 8\n",
    "VLL821": "vllm serve -tp 1\n",
    "VLL830": serve("-tp 8 --kv-transfer-config.kv_connector NixlConnector"),
    "VLL831": serve("-tp 8 --kv-transfer-config.kv_connector NIXLConnector --kv-transfer-config.kv_role kv_both"),
    "VLL832": serve(
        "-tp 8 -dcp 2 --kv-transfer-config.kv_connector NixlConnector --kv-transfer-config.kv_role kv_both",
        model=EXPERTS,
    ),
    "VLL834": serve(
        "-tp 4 -pp 2 --kv-transfer-config.kv_connector NixlPushConnector --kv-transfer-config.kv_role kv_consumer"
    ),
    "VLL833": serve("""-tp 8 --speculative-config '{"method": "ngram", "prompt_lookup_max": 4}'"""),
    "VLL840": serve("-tp 4 --enable-expert-parallel --enable-eplb --eplb-config.step 9", model=EXPERTS),
}
