from pathlib import Path

import pytest

from planner.documents import parse_document
from planner.errors import InputError
from planner.requests.request import DEFAULT_MEMORY_HEADROOM, Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import (
    MAX_LENGTH,
    AttentionKernel,
    DocumentLengths,
    DType,
    Lora,
    Optimizer,
    Packing,
    Precision,
    TrainMethod,
    TrainWorkload,
)
from planner.schema.spec import read_request

HEAD = "schema: 1\nmodel: llama-3.1-70b\ncluster: {preset: dgx-h100, nodes: 8}\n"
WORKLOAD = "workload: {kind: train, seq_len: 8192, global_batch_size: 512, precision: bf16}\n"


def read(text: str) -> PlanRequest:
    return read_request(parse_document(text, file="spec.yaml"), base=Path("/nonexistent"))


def error_of(text: str) -> str:
    with pytest.raises(InputError) as caught:
        read(text)
    return str(caught.value)


def test_the_smallest_spec_takes_the_defaults() -> None:
    assert read(HEAD + WORKLOAD) == PlanRequest(
        workload=TrainWorkload(seq_len=8192, global_batch_size=512, precision=Precision.BF16),
        constraints=Constraints(),
        memory_headroom=DEFAULT_MEMORY_HEADROOM,
        target=Target.MEGATRON,
        objective=Objective.STEP_TIME,
    )


def test_every_field_of_a_spec_arrives() -> None:
    text = HEAD + (
        "workload:\n"
        "  {kind: train, seq_len: 4096, global_batch_size: 8, precision: fp8-blockwise, master_dtype: fp16,\n"
        "   gradient_dtype: bf16, moment_dtype: fp8, optimizer: sgd, attention_kernel: fused, method: lora,\n"
        "   lora: {rank: 16, alpha: 32, target_modules: [fc2, qkv]}, tokens_to_train: 1.5T, hidden_dropout: 0.1,\n"
        "   attention_dropout: 0, data_path: corpus/text, tokenizer_model: tokenizer.model,\n"
        "   documents: {packing: padded, histogram: {4096: 3, 512: 1}}, routing_skew: 2}\n"
        "constraints:\n"
        "  {tp: 8, pp: [4, 1, 4], vpp: {max: 2}, dp: {min: 2, max: 4}, zero_stage: 0, micro_batch_size: {min: 1},\n"
        "   num_microbatches: [8], recompute: [full, none], sequence_parallel: true, cp: [2, 1],\n"
        "   cp_kind: [ulysses, ring], ep: {max: 8}, etp: 1}\n"
        "memory_headroom: 0\n"
        "target: any\n"
        "objective: tokens-per-gpu\n"
    )
    assert read(text) == PlanRequest(
        workload=TrainWorkload(
            seq_len=4096,
            global_batch_size=8,
            precision=Precision.FP8_BLOCKWISE,
            master_dtype=DType.FP16,
            gradient_dtype=DType.BF16,
            moment_dtype=DType.FP8,
            optimizer=Optimizer.SGD,
            attention_kernel=AttentionKernel.FUSED,
            method=TrainMethod.LORA,
            lora=Lora(rank=16, alpha=32.0, target_modules=("qkv", "fc2")),
            tokens_to_train=1_500_000_000_000,
            hidden_dropout=0.1,
            attention_dropout=0.0,
            data_path=("corpus/text",),
            tokenizer_model="tokenizer.model",
            documents=DocumentLengths(lengths=(512, 4096), weights=(0.25, 0.75), packing=Packing.PADDED),
            routing_skew=2.0,
        ),
        constraints=Constraints(
            degrees={
                "tp": Bounds(allowed=(8,)),
                "cp": Bounds(allowed=(1, 2)),
                "pp": Bounds(allowed=(1, 4)),
                "vpp": Bounds(maximum=2),
                "dp": Bounds(minimum=2, maximum=4),
                "ep": Bounds(maximum=8),
                "etp": Bounds(allowed=(1,)),
                "zero_stage": Bounds(allowed=(0,)),
                "micro_batch_size": Bounds(minimum=1),
                "num_microbatches": Bounds(allowed=(8,)),
            },
            recompute=("none", "full"),
            sequence_parallel=True,
            cp_kind=("ring", "ulysses"),
        ),
        memory_headroom=0.0,
        target=Target.ANY,
        objective=Objective.TOKENS_PER_GPU,
    )


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ("15T", 15 * 10**12),
        ("300b", 300 * 10**9),
        ("1.5 T", 1_500_000_000_000),
        ("2M", 2_000_000),
        ("7K", 7000),
        ("1000", 1000),
        ("1.5e9", 1_500_000_000),
        ("'12'", 12),
    ],
)
def test_tokens_are_written_with_a_power_of_1000(written: str, tokens: int) -> None:
    request = read(HEAD + WORKLOAD.replace("}", f", tokens_to_train: {written}}}"))
    assert request.workload.tokens_to_train == tokens


def test_lora_takes_every_module_and_no_scale_unless_told() -> None:
    request = read(HEAD + WORKLOAD.replace("}", ", method: lora, lora: {rank: 8}}"))
    assert request.workload.lora == Lora(rank=8, alpha=8.0, target_modules=("qkv", "proj", "fc1", "fc2"))


@pytest.mark.parametrize("written", ["[0.3, /a, 0.7, /b]", "['0.3', /a, 0.7, /b]"])
def test_a_blend_keeps_its_order_as_text(written: str) -> None:
    request = read(HEAD + WORKLOAD.replace("}", f", data_path: {written}}}"))
    assert request.workload.data_path == ("0.3", "/a", "0.7", "/b")


BLEND_HINT = (
    ": numbers are the weights of the paths behind them.\n"
    "Give paths alone, or a positive weight before every path, as in [0.3, /data/a, 0.7, /data/b]."
)

WORKLOAD_KEYS = (
    "Known keys: kind, seq_len, global_batch_size, precision, master_dtype, gradient_dtype, moment_dtype, optimizer, "
    "attention_kernel, method, lora, tokens_to_train, hidden_dropout, attention_dropout, data_path, tokenizer_model, "
    "documents, routing_skew, routing."
)
DEGREE_HINT = "Give a whole number, a list such as [1, 2, 4], or a range such as {min: 1, max: 8}."
TOKENS_HINT = "Give a whole number, or one such as 300B or 1.5T (K, M, B, T are powers of 1000), of at most 1e18."


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("seqlen: 1", f"seqlen: `seqlen` is not a known key.\nDid you mean `seq_len`? {WORKLOAD_KEYS}"),
        ("zzz: 1", f"zzz: `zzz` is not a known key.\n{WORKLOAD_KEYS}"),
        (
            "optimizer: adamw",
            'optimizer: `optimizer` = "adamw" is not a known value.\nDid you mean `adam`? Allowed: adam, sgd.',
        ),
        ("optimizer: [adam]", "optimizer: `optimizer` is not a known value.\nDid you mean `adam`? Allowed: adam, sgd."),
        ("lora: 3", "lora: `lora` = 3 is not a mapping.\nGive a mapping."),
        ("hidden_dropout: 1", "hidden_dropout: `hidden_dropout` = 1 is out of range.\nGive a value of less than 1.0."),
        ("hidden_dropout: -1", "hidden_dropout: `hidden_dropout` = -1 is out of range.\nGive a value of at least 0.0."),
        (
            "hidden_dropout: '0'",
            'hidden_dropout: `hidden_dropout` = "0" is not a number.\nGive a number, without quotes.',
        ),
        ("data_path: 1", "data_path: `data_path` = 1 is not a list.\nGive a list."),
        ("data_path: [a, true]", "data_path[1]: `data_path[1]` = true is not text.\nGive text."),
        ("data_path: [a, 1]", f'data_path: ["a", 1] is not a blend{BLEND_HINT}'),
        ("data_path: [0.3, a, 0.7]", f'data_path: [0.3, "a", 0.7] is not a blend{BLEND_HINT}'),
        ("data_path: [0.3, a, 0, b]", f'data_path: [0.3, "a", 0, "b"] is not a blend{BLEND_HINT}'),
        ("tokenizer_model: ''", 'tokenizer_model: "" is not a name on one line.\nGive text without line ends.'),
        ("tokens_to_train: 3X", f'tokens_to_train: "3X" is not a number of tokens.\n{TOKENS_HINT}'),
        ("tokens_to_train: 1.5", f"tokens_to_train: 1.5 is not a number of tokens.\n{TOKENS_HINT}"),
        ("tokens_to_train: 0", f"tokens_to_train: 0 is not a number of tokens.\n{TOKENS_HINT}"),
        ("tokens_to_train: true", f"tokens_to_train: true is not a number of tokens.\n{TOKENS_HINT}"),
        (
            "master_dtype: fp8",
            "master_dtype: fp8 is no format for master weights or gradients.\nAllowed: fp32, bf16, fp16.",
        ),
        ("method: lora", "method: `method` = lora needs a description of its adapters.\nAdd lora: {rank: 16}."),
        (
            "lora: {rank: 1}",
            "lora: `lora` is given, but `method` = pretrain trains all weights.\nGive method: lora, or remove lora.",
        ),
        ("lora: {}", "lora: `rank` is missing in `workload.lora`.\nGive the inner width of the adapters, such as 16."),
        ("routing_skew: 0.9", "routing_skew: `routing_skew` = 0.9 is out of range.\nGive a value of at least 1.0."),
        (
            "routing_skew: 2000",
            "routing_skew: `routing_skew` = 2000 is out of range.\nGive a value of at most 1024.0.",
        ),
        ("documents: 512", "documents: `documents` = 512 is not a mapping.\nGive a mapping."),
        (
            "lora: {rank: 1, target_modules: [qvk]}",
            (
                'lora.target_modules: "qvk" is not a module that takes an adapter.\n'
                "Did you mean `qkv`? Allowed: qkv, proj, fc1, fc2, or a list of these."
            ),
        ),
        (
            "lora: {rank: 1, target_modules: [q_proj, v_proj]}",
            (
                'lora.target_modules: "q_proj" is not a module that takes an adapter.\n'
                "It is part of `qkv`. Allowed: qkv, proj, fc1, fc2, or a list of these."
            ),
        ),
    ],
)
def test_a_wrong_field_of_the_workload_is_named_with_its_place(field: str, message: str) -> None:
    text = HEAD + WORKLOAD + "# the next line is added by the test\n"
    found = error_of(text.replace("}\n# ", f",\n  {field}}}\n# "))
    place, _, rest = found.partition(": workload.")
    assert rest == message
    assert place.startswith("spec.yaml:5:")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "train",
            "serve",
            "spec.yaml:4:18: workload.kind: `kind` = serve is no training run.\nGive kind: train.",
        ),
        (
            "train",
            "serving",
            (
                'spec.yaml:4:18: workload.kind: `kind` = "serving" is not a known value.\n'
                "Did you mean `serve`? Allowed: train, serve."
            ),
        ),
        (
            "train",
            "prefill",
            'spec.yaml:4:18: workload.kind: `kind` = "prefill" is not a known value.\nAllowed: train, serve.',
        ),
        (
            "8192",
            "8k",
            (
                'spec.yaml:4:34: workload.seq_len: `seq_len` = "8k" is not a whole number.\n'
                "Give a whole number, written out, such as 8192."
            ),
        ),
        (
            "8192",
            "0",
            "spec.yaml:4:34: workload.seq_len: `seq_len` = 0 is out of range.\nGive a value of at least 1.",
        ),
        (
            "512",
            "99999999",
            (
                "spec.yaml:4:59: workload.global_batch_size: `global_batch_size` = 99999999 is out of range.\n"
                "Give a value of at most 16777216."
            ),
        ),
        (
            "bf16",
            "fp8",
            (
                "spec.yaml:4:75: workload.precision: `precision` = fp8 does not say which recipe; they differ in "
                "memory, hardware and numerics.\nAllowed: fp8-delayed, fp8-tensorwise, fp8-blockwise, fp8-mxfp8."
            ),
        ),
        (
            "bf16",
            "bfloat16",
            (
                'spec.yaml:4:75: workload.precision: `precision` = "bfloat16" is not a known value.\n'
                "Did you mean `bf16`? Allowed: bf16, fp16, fp8-delayed, fp8-tensorwise, fp8-blockwise, fp8-mxfp8."
            ),
        ),
        (
            "kind: train, ",
            "",
            "spec.yaml:4:11: workload: `kind` is missing in `workload`.\nGive kind: train, or kind: serve for servers.",
        ),
        (
            "schema: 1",
            "schema: 2",
            "spec.yaml:1:9: schema: This version of the schema is not known.\nGive schema: 1.",
        ),
        (
            "schema: 1\n",
            "",
            "spec.yaml:1:1: `schema` is missing.\nAdd schema: 1 as the first line.",
        ),
        (
            "model:",
            "modle:",
            (
                "spec.yaml:1:1: `model` is missing.\n"
                "Give a bundled name, the path of a Hugging Face config.json, or the model inline.\n"
                "spec.yaml:2:1: modle: `modle` is not a known key.\n"
                "Did you mean `model`? Known keys: schema, model, cluster, workload, constraints, memory_headroom, "
                "target, objective, deadline_days, node_counts."
            ),
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(old: str, new: str, message: str) -> None:
    assert error_of((HEAD + WORKLOAD).replace(old, new, 1)) == message


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ("tp: '8'", f'"8" is not a whole number from 0 to 1,048,576.\n{DEGREE_HINT}'),
        ("tp: true", f"true is not a whole number from 0 to 1,048,576.\n{DEGREE_HINT}"),
        ("tp: 2.0", f"2.0 is not a whole number from 0 to 1,048,576.\n{DEGREE_HINT}"),
        ("tp: [1, x]", f'[1, "x"] is not a whole number from 0 to 1,048,576.\n{DEGREE_HINT}'),
        ("tp: []", f"The list of allowed values is empty.\n{DEGREE_HINT}"),
        ("tp: 0", "There is no degree below 1.\nDegrees start at 1."),
        ("pp: {min: 0}", "There is no degree below 1.\nDegrees start at 1."),
        ("pp: {min: 4, max: 2}", 'The range {"min": 4, "max": 2} is empty.\nGive a min that is not above max.'),
        ("pp: {}", f"{{}} is not a range of whole numbers.\n{DEGREE_HINT}"),
        ("pp: {mn: 4}", f'{{"mn": 4}} is not a range of whole numbers.\n{DEGREE_HINT}'),
        ("pp: {min: 1, max: x}", f'{{"min": 1, "max": "x"}} is not a range of whole numbers.\n{DEGREE_HINT}'),
        ("zero_stage: 4", "There is no ZeRO stage 4.\nStages are 0, 1, 2 and 3."),
        ("cp: 0", "There is no degree below 1.\nDegrees start at 1."),
        ("ep: true", f"true is not a whole number from 0 to 1,048,576.\n{DEGREE_HINT}"),
        ("etp: {min: 4, max: 2}", 'The range {"min": 4, "max": 2} is empty.\nGive a min that is not above max.'),
        (
            "cp_kind: rings",
            (
                '"rings" is not a kind of context parallelism.\n'
                "Allowed: ring, ulysses, ulysses-ring, or a list of these."
            ),
        ),
        (
            "cp_kind: [ring, 2]",
            (
                '["ring", 2] is not a kind of context parallelism.\n'
                "Allowed: ring, ulysses, ulysses-ring, or a list of these."
            ),
        ),
        (
            "recompute: all",
            '"all" is not a recompute granularity.\nAllowed: none, selective, full, per-layer, or a list of these.',
        ),
        (
            "recompute: []",
            "[] is not a recompute granularity.\nAllowed: none, selective, full, per-layer, or a list of these.",
        ),
        ("sequence_parallel: 1", "`sequence_parallel` = 1 is not true or false.\nGive true or false."),
        (
            "tpp: 1",
            (
                "`tpp` is not a known key.\nDid you mean `tp`? Known keys: tp, cp, cp_kind, pp, vpp, dp, ep, etp, "
                "zero_stage, micro_batch_size, num_microbatches, offloaded_layers, recompute, sequence_parallel, "
                "optimizer_offload, parameter_offload, drive_offload, parameter_drives, offloaded_modules."
            ),
        ),
    ],
)
def test_a_wrong_constraint_is_named_with_its_place(constraint: str, message: str) -> None:
    name = constraint.partition(":")[0]
    column = 3 if name == "tpp" else 3 + len(name) + 2
    found = error_of(HEAD + WORKLOAD + f"constraints:\n  {constraint}\n")
    assert found == f"spec.yaml:6:{column}: constraints.{name}: {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "memory_headroom: 0.95",
            "18: memory_headroom: `memory_headroom` = 0.95 is out of range.\nGive a value of at most 0.9.",
        ),
        ("memory_headroom: 4GiB", '18: memory_headroom: `memory_headroom` = "4GiB" is not a number.\nGive a number.'),
        (
            "target: vllm",
            (
                "9: target: `target` = vllm cannot run this workload: vLLM serves models and trains none.\n"
                "Allowed: megatron, deepspeed, any."
            ),
        ),
        (
            "objective: speed",
            (
                '12: objective: `objective` = "speed" is not a known value.\n'
                "Allowed: step-time, tokens-per-gpu, days, cost, energy, fewest-nodes, robust."
            ),
        ),
    ],
)
def test_a_wrong_top_level_value_is_named_with_its_place(line: str, message: str) -> None:
    assert error_of(HEAD + WORKLOAD + line + "\n") == f"spec.yaml:5:{message}"


@pytest.mark.parametrize(
    ("part", "word", "field"),
    [
        ("constraints", "tensor_parallel", "tp"),
        ("constraints", "tensor_model_parallel_size", "tp"),
        ("constraints", "pipeline-parallel-size", "pp"),
        ("constraints", "data_parallelism", "dp"),
        ("constraints", "expert_tensor_parallel_size", "etp"),
        ("constraints", "gradient_accumulation_steps", "num_microbatches"),
        ("constraints", "sequence_paralel", "sequence_parallel"),
        ("workload", "batch_size", "global_batch_size"),
        ("workload", "torch_dtype", "precision"),
    ],
)
def test_the_words_of_frameworks_are_answered_with_the_field(part: str, word: str, field: str) -> None:
    of_workload = WORKLOAD.replace("{", f"{{{word}: 1, ", 1) if part == "workload" else WORKLOAD
    text = f"{HEAD}{of_workload}" + (f"constraints: {{{word}: 1}}\n" if part == "constraints" else "")
    assert f"{part}.{word}: `{word}` is not a known key.\nDid you mean `{field}`? " in error_of(text)


def test_everything_that_is_wrong_is_reported_in_the_order_of_the_file() -> None:
    text = (HEAD + WORKLOAD).replace("8192", "x").replace("512", "y") + "objective: z\n"
    places = [line.split(":")[1:3] for line in error_of(text).splitlines() if line.startswith("spec.yaml:")]
    assert places == [["4", "34"], ["4", "56"], ["5", "12"]]


def test_at_most_twenty_errors_are_reported() -> None:
    text = HEAD + WORKLOAD + "".join(f"unknown{index}: 1\n" for index in range(30))
    assert error_of(text).endswith("10 more errors follow.\nCorrect these first.")


@pytest.mark.parametrize(("written", "skew"), [("1", 1.0), ("1024", 1024.0)])
def test_the_routing_skew_may_be_anything_from_none_to_its_limit(written: str, skew: float) -> None:
    assert read(HEAD + WORKLOAD.replace("}", f", routing_skew: {written}}}")).workload.routing_skew == skew


def test_the_longest_sequence_has_sixteen_million_tokens() -> None:
    assert read(HEAD + WORKLOAD.replace("8192", "16777216")).workload.seq_len == MAX_LENGTH
    assert "Give a value of at most 16777216." in error_of(HEAD + WORKLOAD.replace("8192", "16777217"))


@pytest.mark.parametrize("target", ["megatron", "deepspeed", "any"])
def test_every_target_that_trains_can_be_asked_for(target: str) -> None:
    assert read(f"{HEAD}{WORKLOAD}target: {target}\n").target is Target(target)


@pytest.mark.parametrize("text", ["[]", "7", "text"])
def test_a_document_that_is_no_mapping_is_refused(text: str) -> None:
    assert error_of(text).endswith(" is not a mapping.\nGive a mapping.")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "null"])
def test_an_empty_document_is_said_to_be_empty(text: str) -> None:
    assert error_of(text).endswith(
        ": The file is empty.\nCheck that this is the file you mean; `shardwright init` writes a spec to start from."
    )
