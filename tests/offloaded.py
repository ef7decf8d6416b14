"""Small questions about offloaded inference, and their plans, each planned once."""

from functools import cache
from pathlib import Path

from planner.documents import parse_document
from planner.experts.assumed import assumed_histogram
from planner.experts.histogram import RoutingHistogram
from planner.experts.of_model import routed_experts
from planner.inference_offload.decide import plan_offload
from planner.inference_offload.machine import Machine, machine_of
from planner.inference_offload.plan import OffloadPlan
from planner.inference_offload.request import OffloadRequest
from planner.inference_offload.work import ModelWork
from planner.models.specs import ModelSpec
from planner.serving_search.inputs import ServeInputs, read_serve_inputs

SPEC = """\
schema: 1
model: {model}
cluster:
  gpu: {gpu}
  gpus_per_node: 4
  nodes: 1
  host_ram: {host}GiB
  nvme: {{count: 1, capacity: 2TB, bandwidth: 3GB/s}}
workload: {{kind: serve, input: 512, output: 32, arrivals: offline}}
"""
DENSE = ("opt-30b", "l40s", 200)
LARGE = ("llama-3.1-70b", "a100-sxm-40gb", 64)
MIXTURE = ("mixtral-8x7b", "v100-sxm-16gb", 128)
CASES = {"dense": DENSE, "large": LARGE, "mixture": MIXTURE}


@cache
def offload_inputs(model: str, gpu: str, host: int) -> ServeInputs:
    """Return a model on a node of four GPUs."""
    text = SPEC.format(model=model, gpu=gpu, host=host)
    return read_serve_inputs(parse_document(text, file="spec.yaml"), base=Path("/nonexistent"))


def request_of(*, peers: int = 0, num_sequences: int | None = None, prompt: int = 512) -> OffloadRequest:
    """Return a question; by default as the spec asks it."""
    return OffloadRequest(
        served_model="org/model", prompt_tokens=prompt, output_tokens=32, num_sequences=num_sequences, peers=peers
    )


def histogram_of(model: ModelSpec, name: str = "zipf:1.0") -> RoutingHistogram:
    """Return an assumed histogram of a model's experts."""
    known = routed_experts(model)
    return assumed_histogram(name, num_layers=len(known.layers), num_experts=known.num_experts, seed=0)


@cache
def priced(case: str, *, peers: int = 0, prompt: int = 512) -> tuple[ModelWork, Machine, OffloadRequest]:
    """Return a case's model, its node and the question."""
    inputs, request = offload_inputs(*CASES[case]), request_of(peers=peers, prompt=prompt)
    histogram = histogram_of(inputs.model) if inputs.model.has_experts else None
    cluster = inputs.clusters[0]
    return ModelWork(inputs.model, cluster, request, histogram), machine_of(cluster, request), request


@cache
def offloaded(case: str, *, peers: int = 0, num_sequences: int | None = 64, solver: str = "mathopt") -> OffloadPlan:
    """Return the plan of a case, of few sequences, so that it is found at once."""
    inputs = offload_inputs(*CASES[case])
    histogram = histogram_of(inputs.model) if inputs.model.has_experts else None
    request = request_of(peers=peers, num_sequences=num_sequences)
    return plan_offload(inputs.model, inputs.clusters[0], request, histogram=histogram, solver=solver)
