"""What frameworks and people call the fields of a spec, for messages that propose the field.

Flags and keys of Megatron-LM 0.19 (`--tensor-model-parallel-size`), DeepSpeed 0.19 (`train_batch_size`), vLLM 0.32
(`--tensor-parallel-size`) and its benchmark (`--request-rate`), Hugging Face (`torch_dtype`), and the short forms that
papers use. Nothing here is read as the field: a spec has one word for each.
"""

import re

_PARALLEL = re.compile(r"(?:_?model)?_?parallel(?:ism)?(?:_(?:size|degree|dim))?$|_(?:size|degree)$")

_DEGREES = {
    "tensor": "tp",
    "pipeline": "pp",
    "virtual_pipeline": "vpp",
    "context": "cp",
    "expert": "ep",
    "expert_tensor": "etp",
    "data": "dp",
    "decode_context": "dcp",
}

_FIELDS = {
    "batch_size": "global_batch_size",
    "gbs": "global_batch_size",
    "global_batch": "global_batch_size",
    "train_batch_size": "global_batch_size",
    "mbs": "micro_batch_size",
    "micro_batch": "micro_batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size",
    "gradient_accumulation_steps": "num_microbatches",
    "sequence_length": "seq_len",
    "seq_length": "seq_len",
    "max_seq_len": "seq_len",
    "context_length": "seq_len",
    "dtype": "precision",
    "torch_dtype": "precision",
    "train_tokens": "tokens_to_train",
    "num_tokens": "tokens_to_train",
    "zero": "zero_stage",
    "zero_optimization": "zero_stage",
    "activation_checkpointing": "recompute",
    "gradient_checkpointing": "recompute",
    "num_nodes": "nodes",
    "nnodes": "nodes",
    "qps": "requests_per_second",
    "rps": "requests_per_second",
    "request_rate": "requests_per_second",
    "isl": "input",
    "input_len": "input",
    "input_tokens": "input",
    "prompt_tokens": "input",
    "osl": "output",
    "output_len": "output",
    "output_tokens": "output",
    "throughput": "goodput",
}


def usual_word(word: str) -> str | None:
    """Return the field of a spec that is called `word` elsewhere; None where nothing is."""
    plain = word.lower().replace("-", "_").strip("_")
    if plain in _FIELDS:
        return _FIELDS[plain]
    return _DEGREES.get(_PARALLEL.sub("", plain))
