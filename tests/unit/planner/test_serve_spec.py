"""Serving specs and traces: what they become, and what is said where they are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from planner.errors import InputError, Location
from planner.inputs.load import kind_of, spec_document
from planner.schema.serve_trace import read_trace
from planner.serving_plans.request import Arrivals, Lengths, ServeObjective, Splits
from planner.serving_search.inputs import load_serve_inputs
from planner.serving_search.traffic import mean_of, requests_at_rate, requests_in_loop, requests_of_trace
from tests.served import SMALL, serve_inputs


def error_of(*changes: tuple[str, str]) -> str:
    with pytest.raises(InputError) as caught:
        serve_inputs(SMALL, *changes)
    return str(caught.value)


def test_the_smallest_spec_loads() -> None:
    inputs = serve_inputs()
    workload = inputs.request.workload
    assert inputs.model.name == "llama-3.1-8b"
    assert inputs.request.served_model == "meta-llama/Llama-3.1-8B"
    assert (workload.prompts, workload.outputs) == (
        Lengths(shortest=1000, longest=1000),
        Lengths(shortest=200, longest=200),
    )
    assert workload.targets.given == {"ttft": 0.5, "tpot": 0.025}
    assert (workload.targets.percentile, workload.max_model_len) == (90.0, 1200)
    assert inputs.request.objective is ServeObjective.GOODPUT
    assert workload.arrivals is Arrivals.POISSON


def test_engines_load_a_model_of_ones_own_from_its_directory(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 5,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    own = tmp_path / "models" / "mine"
    own.mkdir(parents=True)
    (own / "config.json").write_text(json.dumps(config))
    spec = tmp_path / "specs" / "spec.yaml"
    spec.parent.mkdir()
    for named in ("../models/mine", "../models/mine/config.json", str(own)):
        spec.write_text(SMALL.replace("model: llama-3.1-8b", f"model: {named}"))
        assert load_serve_inputs(spec).request.served_model == str(own.resolve())
    spec.write_text(SMALL.replace("model: llama-3.1-8b", "model: ../models/mine\nserved_model: /weights/mine"))
    assert load_serve_inputs(spec).request.served_model == "/weights/mine"


def test_a_word_is_no_length_and_the_forms_of_one_are_shown() -> None:
    assert error_of(("input: 1000", "input: lognormal")) == (
        'spec.yaml:6:10: workload.input: "lognormal" is no length.\n'
        "Give tokens, such as 2048, {min: 500, max: 4000}, or {mean: 1800, sigma: 0.8, max: 16000}."
    )
    assert "Did you mean `requests_per_second`? " in error_of(("input: 1000", "input: 1000\n  rps: 10"))
    assert "Did you mean `input`? " in error_of(("input: 1000", "input_tokens: 1000"))


def test_everything_that_can_be_said_is_read() -> None:
    inputs = serve_inputs(
        SMALL,
        ("input: 1000", "input: {min: 10, mean: 900, sigma: 0.5, max: 4000}"),
        ("output: 200", "output: {min: 20, max: 300}\n  prefix: {tokens: 9, hit_fraction: 0.5}\n  quantization: fp8"),
        ("{ttft_ms: 500, tpot_ms: 25}", "{e2e_ms: 9000, percentile: mean, attainment: 0.9}"),
        ("workload:", "constraints: {tp: [1, 2], split: only, expert_parallel: false}\nworkload:"),
    )
    workload, constraints = inputs.request.workload, inputs.request.constraints
    assert workload.prompts == Lengths(shortest=10, longest=4000, mean=900, sigma=0.5)
    assert (workload.targets.percentile, workload.targets.attainment) == (None, 0.9)
    assert (workload.quantization, workload.max_model_len) == ("fp8", 4300)
    assert (constraints.split, constraints.expert_parallel) == (Splits.ONLY, False)
    assert constraints.admits("tp", 2)
    assert not constraints.admits("tp", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("  output: 200\n", ""),
            "spec.yaml:5:9: workload.kind: `output` is missing.\nGive output: 1024, a distribution, or a trace.",
        ),
        (
            ("input: 1000", "input: {min: 20, max: 10}"),
            (
                "spec.yaml:6:16: workload.input.min: No length lies between min and max.\n"
                "Give a min that is not above max."
            ),
        ),
        (
            ("input: 1000", "input: {mean: 20, max: 100}"),
            "spec.yaml:6:17: workload.input.mean: `mean` alone is no distribution.\nGive mean and sigma, or neither.",
        ),
        (
            ("input: 1000", "concurrency: 3\n  input: 1000"),
            (
                "spec.yaml:6:16: workload.concurrency: `concurrency` and `arrivals` = poisson do not go together.\n"
                "It is the load of arrivals: closed-loop."
            ),
        ),
        (
            ("{ttft_ms: 500, tpot_ms: 25}", "{percentile: 100}"),
            (
                "spec.yaml:8:21: workload.slo.percentile: This is no percentile.\n"
                "Give a number from 1 to 99.9, such as 90, or mean."
            ),
        ),
        (
            ("{ttft_ms: 500, tpot_ms: 25}", "{attainment: 0.5}"),
            (
                "spec.yaml:8:21: workload.slo.attainment: `attainment` is given, but no target.\n"
                "Add ttft_ms, tpot_ms or e2e_ms."
            ),
        ),
        (
            ("workload:", "objective: cost\nworkload:"),
            (
                "spec.yaml:4:12: objective: `objective` = cost needs a load to bear.\n"
                "Add requests_per_second to the workload."
            ),
        ),
        (
            ("cluster: {preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.0}\n", ""),
            (
                "spec.yaml:1:1: There is no cluster.\n"
                "Give cluster: {preset: dgx-h100, nodes: 1}, or clusters: with one entry for each kind of GPU."
            ),
        ),
        (
            ("input: 1000", "input: 200000"),
            (
                "spec.yaml:5:3: workload: Sequences of 200,200 tokens are longer than llama-3.1-8b takes, 131,072.\n"
                "Shorten input and output, or max_model_len."
            ),
        ),
        (
            ("output: 200", "output: 200\n  max_model_len: 800"),
            (
                "spec.yaml:8:18: workload.max_model_len: `max_model_len` = 800 is less than the longest prompt and"
                " answer, 1200 tokens.\nGive at least 1200, or leave it out."
            ),
        ),
        (
            ("output: 200", "output: 200\n  prefix: {tokens: 1000}"),
            (
                "spec.yaml:8:20: workload.prefix.tokens: The shared beginning has 1000 tokens, the shortest prompt"
                " 1000.\n"
                "Give less than the shortest prompt: at least its last token is computed."
            ),
        ),
        (
            (
                "workload:\n",
                "constraints: {split: only}\nworkload:\n  arrivals: closed-loop\n  concurrency: 8\n",
            ),
            (
                "spec.yaml:4:14: constraints: `concurrency` and `constraints.split` = only do not go together.\n"
                "A fixed number under way is planned for engines that do everything: leave out one of the two."
            ),
        ),
        (
            ("price_per_gpu_hour: 2.0}", "}\nconstraints: {max_price_per_hour: 5.0}"),
            (
                "spec.yaml:3:10: cluster: dgx-h100 has no price, which the plan needs.\n"
                "Add price_per_gpu_hour to the cluster."
            ),
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change: tuple[str, str], message: str) -> None:
    assert error_of(change) == message


def test_an_unknown_quantisation_is_named() -> None:
    said = error_of(("output: 200", "output: 200\n  quantization: fp7"))
    assert said.startswith("spec.yaml:8:17: workload.quantization: quantisation 'fp7' is not known.\nUse one of ")


def test_two_clusters_need_names_of_their_own() -> None:
    two = "clusters: [{preset: dgx-h100, nodes: 1}, {preset: dgx-h100, nodes: 2}]"
    said = error_of(("cluster: {preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.0}", two))
    assert "clusters[0]: Two clusters are called dgx-h100.\nRename one." in said


def test_a_training_spec_is_told_from_a_serving_one(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(SMALL)
    (tmp_path / "train.yaml").write_text("schema: 1\nworkload: {kind: train}\n")
    assert kind_of(spec_document(tmp_path / "serve.yaml")) == "serve"
    assert kind_of(spec_document(tmp_path / "train.yaml")) == "train"
    (tmp_path / "run.yaml").write_text("kind: serve\n")
    (tmp_path / "parts.yaml").write_text("schema: 1\nworkload: run.yaml\n")
    assert kind_of(spec_document(tmp_path / "parts.yaml")) == "serve"


CSV = "arrival,input_tokens,output_tokens\n5.0,100,10\n4.0,200,20\n7.0,300,30\n"
JSON_LINES = (
    '{"timestamp": 4000, "input_length": 200, "output_length": 20}\n'
    '{"timestamp": 5000, "input_length": 100, "output_length": 10}\n'
    '{"timestamp": 7000, "input_length": 300, "output_length": 30}\n'
)


@pytest.mark.parametrize("text", [CSV, JSON_LINES])
def test_a_trace_is_sorted_and_counted_from_its_first_request(text: str, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(text)
    trace = read_trace("trace", base=tmp_path, location=Location(file="spec.yaml"))
    assert trace.arrivals_N == (0.0, 1.0, 3.0)
    assert trace.prompts_N == (200, 100, 300)
    assert trace.outputs_N == (20, 10, 30)
    assert trace.requests_per_second == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The first line names no column of prompts."),
        ("input_tokens,output_tokens\n", "The trace has no request."),
        ("arrival,input_tokens\n0,1\n", "The first line names no column of answers."),
        ("input_tokens,output_tokens\n5\n", "`output_tokens` is missing."),
        ('{"input_tokens": 5}', "`output_tokens` is missing."),
        ("input_tokens,output_tokens\n5,x\n", '`output_tokens` = "x" is no number of tokens.'),
        ("input_tokens,output_tokens\n0,5\n", '`input_tokens` = "0" is no number of tokens.'),
        ("arrival,input_tokens,output_tokens\n-1,5,5\n", '"-1" is no time of arrival.'),
        ("arrival,input_tokens,output_tokens\n1,5,5\n,5,5\n", "Some requests have an arrival, others none."),
        ("arrival,input_tokens,output_tokens\n1,5,5\n1,5,5\n", "All requests arrive at once."),
        ('{"input_tokens": 5, "output_tokens": 5}\n[]\n', "This line is no JSON object."),
        ('{"input_tokens": [1], "output_tokens": 5}\n', "`input_tokens` = [1] is no number of tokens."),
        (
            f'input_tokens,output_tokens\n"{"9" * 200_000}",5\n',
            "This is not CSV: field larger than field limit (131072).",
        ),
    ],
)
def test_a_damaged_trace_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(InputError) as caught:
        read_trace("trace", base=tmp_path, location=Location(file="spec.yaml"))
    assert caught.value.message == message


def test_a_trace_is_the_workload(tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(CSV)
    text = SMALL.replace("input: 1000", "trace: trace.csv\n  arrivals: trace").replace("  output: 200\n", "")
    (tmp_path / "spec.yaml").write_text(text)
    request = load_serve_inputs(tmp_path / "spec.yaml").request
    assert request.workload.max_model_len == 330
    with pytest.raises(InputError, match="= 329 is less than the longest prompt and answer, 330 tokens"):
        load_serve_inputs(tmp_path / "spec.yaml", ["workload.max_model_len=329"])
    (requests,) = requests_of_trace(request, count=3, per_second=3.0)
    assert requests.prompts_N.tolist() == [200, 100, 300]
    # Three times as fast as it was recorded.
    assert requests.arrivals_N.tolist() == pytest.approx([0.0, 1 / 3, 1.0])


def test_lengths_have_their_mean_whatever_their_number() -> None:
    inputs = serve_inputs(SMALL, ("input: 1000", "input: {mean: 1000, sigma: 0.5, max: 100000}"))
    assert mean_of(inputs.request.workload).prompt == pytest.approx(1000, rel=0.01)
    drawn = requests_in_loop(inputs.request, count=300, concurrency=8)
    assert drawn.prompts_N.mean() == pytest.approx(1000, rel=0.02)
    assert len(set(drawn.prompts_N.tolist())) > 250


@pytest.mark.parametrize(("burstiness", "deviation"), [(1.0, 1.0), (4.0, 0.5)])
def test_intervals_vary_as_burstiness_says(burstiness: float, deviation: float) -> None:
    inputs = serve_inputs(SMALL, ("output: 200", f"output: 200\n  burstiness: {burstiness}"))
    gaps_N = np.diff(requests_at_rate(inputs.request, count=20_000, per_second=5.0).arrivals_N)
    assert gaps_N.mean() == pytest.approx(0.2, rel=0.03)
    # A gamma distribution of shape k has a deviation of 1 / sqrt(k) means.
    assert gaps_N.std() / gaps_N.mean() == pytest.approx(deviation, rel=0.05)


def test_a_part_of_the_requests_finds_the_shared_beginning() -> None:
    inputs = serve_inputs(SMALL, ("output: 200", "output: 200\n  prefix: {tokens: 600, hit_fraction: 0.25}"))
    assert mean_of(inputs.request.workload).cached == 150.0
    cached_N = requests_at_rate(inputs.request, count=400, per_second=5.0).cached_N
    assert sorted(set(cached_N.tolist())) == [0, 600]
    assert (cached_N > 0).mean() == 0.25
