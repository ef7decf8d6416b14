"""What validate says of a server's memory: shortfalls by hand, proposals that hold, and what leaves it undecided."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from planner.rules.rule import Severity
from planner.validation.judge import Judged, judge
from planner.validation.pricing import Machine
from planner.validation.source import Asked

NOBODY = Asked(versions={}, gpus_per_node=8)
SMALL = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.1-70B-Instruct"
MEMORY = {"MEM101", "MEM102", "MEM103"}


def judged(words: str, *, cluster: str | None = "dgx-h100", spec: Path | None = None) -> Judged:
    machine = Machine(cluster=cluster, spec=spec, advice=False)
    return judge([], NOBODY, command=f"vllm serve {words}", machine=machine)


def broken(words: str, *, cluster: str = "dgx-h100") -> list[str]:
    found = judged(words, cluster=cluster)
    assert not found.undecided
    return [finding.rule_id for finding in found.findings]


def missing(words: str) -> set[str]:
    found = judged(words)
    assert not MEMORY & {finding.rule_id for finding in found.findings}
    reasons = {one.what for one in found.undecided if one.rule_id in MEMORY}
    assert {one.rule_id for one in found.undecided if one.what in reasons} & MEMORY == MEMORY
    return reasons


def test_weights_that_do_not_fit_break_one_rule() -> None:
    (finding,) = judged(LARGE).findings
    assert (finding.rule_id, finding.severity) == ("MEM101", Severity.ERROR)
    # 70.55 billion parameters of 2 bytes are 131.4 GiB; the engine takes 0.92 of the GPU.
    assert finding.found.message == "A GPU needs 135.8 GiB beside the cache, and the engine has 72.8 GiB for it."
    assert finding.found.hint == (
        "Largest: weights 131.4 GiB, activations 2.8 GiB, graphs 1.0 GiB. It fits with --tensor-parallel-size 4."
    )


def test_a_request_that_exceeds_the_cache_breaks_one_rule() -> None:
    (finding,) = judged(f"{SMALL} --kv-cache-memory-bytes 8G").findings
    assert (finding.rule_id, finding.severity) == ("MEM102", Severity.ERROR)
    # A token takes 128 KiB: the model's 131,072 positions 16 GiB. 8 GiB hold half of them less a block of 16 tokens,
    # which is never given out; for the same reason two GPUs of 8 GiB do not do.
    assert finding.found.message == "A request of 131,072 tokens needs 16.0 GiB of cache on a GPU, which has 8.0 GiB."
    assert finding.found.hint == "It fits with --max-model-len 65520 or --tensor-parallel-size 4."
    assert finding.found.place.column == len(f"vllm serve {SMALL} ") + 1


@pytest.mark.parametrize("words", [SMALL, f"{LARGE} -tp 8", "openai/gpt-oss-120b", f"{LARGE} -tp 4 -pp 2"])
def test_a_server_that_fits_breaks_nothing(words: str) -> None:
    assert broken(words) == []


def test_a_given_cache_has_to_fit_beside_the_weights() -> None:
    assert broken(f"{SMALL} --kv-cache-memory-bytes 40G") == []
    assert broken(f"{SMALL} --kv-cache-memory-bytes 70G") == ["MEM101"]


def test_an_engine_that_chooses_the_length_needs_some_cache_only() -> None:
    assert broken(f"{SMALL} --gpu-memory-utilization 0.3") == ["MEM102"]
    assert broken(f"{SMALL} --gpu-memory-utilization 0.3 --max-model-len auto") == []
    assert broken(f"{SMALL} --gpu-memory-utilization 0.1 --max-model-len auto") == ["MEM101"]


def test_sequences_need_a_block_of_states_each() -> None:
    hybrid = "Qwen/Qwen3.5-35B-A3B -tp 2 --max-model-len 32768 --kv-cache-memory-bytes 4G"
    (finding,) = judged(hybrid).findings
    assert (finding.rule_id, finding.severity) == ("MEM103", Severity.ERROR)
    found = re.fullmatch(
        r"1,024 sequences need a block of states each, and the cache has (\d+)\.", finding.found.message
    )
    assert found is not None
    assert broken(f"{hybrid} --max-num-seqs {found[1]}") == []
    assert broken(f"{hybrid} --max-num-seqs {int(found[1]) + 1}") == ["MEM103"]
    # Without graphs nobody asks, and layers that only attend keep no states.
    assert broken(f"{hybrid} --enforce-eager") == []
    assert broken(f"{SMALL} --max-num-seqs 2048") == []


def test_weights_of_one_byte_need_half() -> None:
    assert broken(f"{LARGE} --max-model-len 8192") == ["MEM101"]
    assert broken(f"{LARGE} --max-model-len 8192 --quantization fp8", cluster="dgx-h200") == []
    assert broken("nvidia/Llama-3.1-70B-Instruct-FP8 --max-model-len 8192", cluster="dgx-h200") == []


def test_copies_of_experts_take_memory_where_experts_are_dealt_to_ranks() -> None:
    words = (
        "Qwen/Qwen3-235B-A22B --tensor-parallel-size 4 --data-parallel-size 2 --enable-expert-parallel"
        " --max-model-len 8192 --quantization fp8 --enable-eplb"
    )
    # An expert takes 18.9 MB in each of 94 layers, 1.65 GiB in all: 20 copies on a rank fit, 28 do not.
    assert broken(f"{words} --eplb-config '{{\"num_redundant_experts\": 160}}'") == []
    assert broken(f"{words} --eplb-config '{{\"num_redundant_experts\": 224}}'") == ["MEM101"]


def test_no_graphs_leave_more_cache() -> None:
    def longest(words: str) -> int:
        (finding,) = judged(f"{SMALL} --gpu-memory-utilization 0.3 {words}").findings
        return int(re.findall(r"--max-model-len (\d+)", finding.found.hint)[0])

    assert longest("--enforce-eager") - longest("") == pytest.approx((1 << 30) / 131_072, abs=16)


def proposals(words: str) -> dict[str, str]:
    (finding,) = judged(words).findings
    return dict(re.findall(r"(--[a-z-]+) ([\d.]+)(?: |\.$)", finding.found.hint))


TIGHT = [f"{SMALL} --gpu-memory-utilization 0.3", f"{LARGE} -tp 2 --gpu-memory-utilization 0.9"]


@pytest.mark.parametrize("words", TIGHT)
def test_what_is_proposed_fits_and_more_does_not(words: str) -> None:
    said = proposals(words)
    length = int(said["--max-model-len"])
    assert broken(f"{words} --max-model-len {length}") == []
    assert broken(f"{words} --max-model-len {length + 16}") == ["MEM102"]
    assert broken(f"{words.replace(' -tp 2', '')} --tensor-parallel-size {said['--tensor-parallel-size']}") == []


def test_the_share_that_is_proposed_is_the_least() -> None:
    share = float(proposals(TIGHT[0])["--gpu-memory-utilization"])
    assert broken(f"{SMALL} --gpu-memory-utilization {share:.2f}") == []
    assert broken(f"{SMALL} --gpu-memory-utilization {share - 0.01:.2f}") == ["MEM102"]


def test_a_share_above_095_is_not_proposed() -> None:
    assert "--gpu-memory-utilization" not in proposals(TIGHT[1])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("a/b", "the model a/b (name a bundled model, or a folder with its config.json)"),
        (f"{SMALL} --enable-lora", "the memory that --enable-lora takes or frees"),
        (f"{SMALL} --cpu-offload-gb 8", "the memory that --cpu-offload-gb takes or frees"),
        (
            f"""{SMALL} --speculative-config '{{"model": "ngram", "num_speculative_tokens": 3}}'""",
            "the memory that --speculative-config takes or frees",
        ),
        (f"{SMALL} --dtype float32", "the bytes of a model in float32"),
        (f"{SMALL} --quantization bitsandbytes", "quantisation 'bitsandbytes' is not known."),
        (f"{SMALL} --max-model-len $LENGTH", "max_model_len"),
    ],
)
def test_what_the_ledger_does_not_count_is_not_decided(words: str, what: str) -> None:
    assert missing(words) == {what}


def test_a_spec_of_training_says_no_gpu_for_a_server() -> None:
    found = judged(SMALL, cluster=None, spec=Path("spec.yaml"))
    assert {one.what for one in found.undecided} == {
        "the GPUs (give --cluster with a preset; --spec prices training runs)"
    }


def folder(tmp_path: Path, **more: Any) -> Path:
    (tmp_path / "model").mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        **more,
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    script = tmp_path / "serve.sh"
    script.write_text("vllm serve ./model --gpu-memory-utilization 0.95\n")
    return script


@pytest.mark.parametrize(
    ("section", "rules"),
    [
        ({}, ["MEM101"]),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, []),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, []),
    ],
)
def test_a_folder_says_what_its_weights_are_held_in(tmp_path: Path, section: dict[str, Any], rules: list[str]) -> None:
    result = judge(
        [str(folder(tmp_path, **section))], NOBODY, machine=Machine(cluster="dgx-h100", spec=None, advice=False)
    )
    assert not result.undecided
    assert [finding.rule_id for finding in result.findings] == rules


def test_bits_that_no_format_has_are_not_decided(tmp_path: Path) -> None:
    script = folder(tmp_path, quantization_config={"quant_method": "gptq", "bits": 3})
    result = judge([str(script)], NOBODY, machine=Machine(cluster="dgx-h100", spec=None, advice=False))
    assert {one.what for one in result.undecided} == {"the bytes of a weight of 3 bits"}


def test_a_file_of_options_alone_is_not_decided(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(f"model: {LARGE}\ntensor-parallel-size: 1\nmax-num-seqs: 64\n")
    result = judge([str(file)], NOBODY, machine=Machine(cluster="dgx-h100", spec=None, advice=False))
    assert {one.rule_id for one in result.undecided if "command that the file" in one.what} >= MEMORY


def test_the_command_line_judges_memory_on_a_cluster_alone() -> None:
    runner = CliRunner()
    words = ["validate", "--command", f"vllm serve {LARGE}", "--format", "json"]
    assert json.loads(runner.invoke(app, words).stdout)["findings"] == []
    result = runner.invoke(app, [*words, "--cluster", "dgx-h100"])
    assert result.exit_code == 1
    assert [finding["rule"] for finding in json.loads(result.stdout)["findings"]] == ["MEM101"]
