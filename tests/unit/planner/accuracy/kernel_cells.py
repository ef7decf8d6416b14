"""Cells of one row of each kind of kernel benchmark, without the columns that may be missing."""

from planner.accuracy.measurements import Kind

GEMM = {"system": "h100_sxm", "dtype": "bfloat16", "m": "8192", "n": "8192", "k": "8192", "latency_us": "1500"}
EXPERTS = {
    "system": "h100_sxm",
    "moe_dtype": "bfloat16",
    "num_tokens": "1024",
    "hidden_size": "4096",
    "inter_size": "14336",
    "topk": "2",
    "num_experts": "8",
    "latency_us": "900",
}
LATENT = {
    "system": "h100_sxm",
    "mla_dtype": "bfloat16",
    "num_heads": "16",
    "batch_size": "32",
    "isl": "1",
    "kv_len": "4096",
    "latency_us": "60",
}
PREFILL = {
    "system": "h100_sxm",
    "attn_dtype": "bfloat16",
    "batch_size": "4",
    "isl": "4096",
    "num_heads": "32",
    "num_kv_heads": "8",
    "latency_us": "1200",
}
DECODE = {
    "system": "h100_sxm",
    "attn_dtype": "bfloat16",
    "batch_size": "32",
    "kv_len": "4096",
    "num_heads": "32",
    "num_kv_heads": "8",
    "latency_us": "200",
}
REDUCE = {
    "system": "h100_sxm",
    "op": "all_reduce",
    "num_gpus": "8",
    "num_nodes": "1",
    "bytes": "1e9",
    "library": "nccl",
}

KERNELS = {
    Kind.GEMM: GEMM,
    Kind.ATTENTION_PREFILL: PREFILL,
    Kind.ATTENTION_DECODE: DECODE,
    Kind.MLA: LATENT,
    Kind.MOE: EXPERTS,
    Kind.COLLECTIVES: REDUCE,
}
