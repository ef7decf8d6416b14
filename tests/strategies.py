"""Hypothesis strategies: legal specs as text, and values that no field expects."""

import json

from hypothesis import strategies as st

from planner.documents import Data

MODELS = ("llama-3.1-8b", "llama-3.1-70b")
CLUSTERS = ("dgx-a100", "dgx-h100", "dgx-b200", "p5")


@st.composite
def spec_data(draw: st.DrawFn) -> dict[str, Data]:
    """Return a legal spec: nothing in it contradicts anything else."""
    workload: dict[str, Data] = {
        "kind": "train",
        "seq_len": draw(st.sampled_from((512, 4096, 8192))),
        "global_batch_size": draw(st.sampled_from((64, 512, 2048))),
        "precision": draw(st.sampled_from(("bf16", "fp16"))),
    }
    optional: dict[str, st.SearchStrategy[Data]] = {
        "gradient_dtype": st.sampled_from(("fp32", "bf16")),
        "moment_dtype": st.sampled_from(("fp32", "bf16", "fp16", "fp8")),
        "optimizer": st.sampled_from(("adam", "sgd")),
        "attention_kernel": st.sampled_from(("flash", "fused", "unfused")),
        "tokens_to_train": st.one_of(st.integers(1, 10**15), st.sampled_from(("15T", "300B", "1.5T"))),
        "hidden_dropout": st.floats(0, 0.5),
        "data_path": st.one_of(st.just("corpus"), st.just(["a", "b"])),
        "tokenizer_model": st.just("tokenizer.model"),
        "documents": st.sampled_from(
            (
                {"histogram": {"64": 1, "512": 2.5}},
                {"packing": "padded", "distribution": "uniform", "min": 1, "max": 512},
                {"packing": "packed", "distribution": "lognormal", "mean": 300, "sigma": 1.1},
            )
        ),
        "routing_skew": st.floats(1, 8),
    }
    workload |= draw(_some(optional))
    if draw(st.booleans()):
        workload |= {"method": "lora", "lora": {"rank": draw(st.integers(1, 256))}}
    bounds: st.SearchStrategy[Data] = st.one_of(
        st.sampled_from((1, 2, 4)), st.just([1, 2, 4]), st.just({"min": 1, "max": 8}), st.just({"max": 4})
    )
    constraints = draw(
        _some(
            {
                "tp": bounds,
                "micro_batch_size": bounds,
                "vpp": bounds,
                "cp": st.sampled_from((1, 2, [1, 2, 4], {"min": 1})),
                "cp_kind": st.sampled_from(("ring", ["ring", "ulysses"])),
                "ep": st.sampled_from((1, [1, 8], {"max": 4})),
                "zero_stage": st.sampled_from((0, 1)),
                "recompute": st.sampled_from(("none", "full", ["none", "selective"])),
                "sequence_parallel": st.booleans(),
            }
        )
    )
    spec: dict[str, Data] = {
        "schema": 1,
        "model": draw(st.sampled_from(MODELS)),
        "cluster": {"preset": draw(st.sampled_from(CLUSTERS)), "nodes": draw(st.sampled_from((1, 2, 8)))},
        "workload": workload,
    }
    if constraints:
        spec["constraints"] = constraints
    return spec | draw(
        _some(
            {
                "memory_headroom": st.floats(0, 0.9),
                "target": st.sampled_from(("megatron", "any")),
                "objective": st.sampled_from(("step-time", "tokens-per-gpu")),
            }
        )
    )


def spec_texts() -> st.SearchStrategy[str]:
    """Return legal specs as text: JSON, which is YAML 1.2 too."""
    return spec_data().map(lambda data: json.dumps(data, indent=1))


def junk() -> st.SearchStrategy[Data]:
    """Return values that a field may hold in a damaged or hostile spec."""
    scalars: st.SearchStrategy[Data] = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**25), 10**25),
        st.sampled_from((0, 1, -1, 2, 3, 7, 2**31, 2**63, 10**29)),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=20),
        st.sampled_from(("", "bf16", "80GiB", "1e400", "../..", "/", "~", "~nobody", ".", "x" * 5000, "{}", "400Gb/s")),
    )
    return st.recursive(
        scalars,
        lambda values: st.one_of(
            st.lists(values, max_size=4), st.dictionaries(st.text(max_size=8), values, max_size=4)
        ),
        max_leaves=8,
    )


def _some(fields: dict[str, st.SearchStrategy[Data]]) -> st.SearchStrategy[dict[str, Data]]:
    """Return mappings of any of the fields."""
    return st.fixed_dictionaries({}, optional=fields)
