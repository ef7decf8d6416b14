"""The serving spec, as users write it.

```yaml
schema: 1
model: llama-3.1-70b
cluster: {preset: dgx-h100, nodes: 1, price_per_gpu_hour: 2.5}   # or clusters: a list, one for each kind of GPU
workload:
  kind: serve
  input: 2000                     # or {min: 500, max: 4000}, or {mean: 1800, sigma: 0.8, max: 16000}
  output: 256
  # trace: requests.csv           # instead of input and output; CSV or JSON Lines
  arrivals: poisson               # or closed-loop, offline, trace
  requests_per_second: 10         # left out, as much as the GPUs bear
  slo: {ttft_ms: 1000, tpot_ms: 40, percentile: 90}
  # routing: {histogram: counts.json}   # or zipf:1.0; read once the model is known
# speculative: {draft: llama-3.2-1b, acceptance: 0.7}
objective: goodput                # or fewest-gpus, cost
# cache_size: bytes               # --kv-cache-memory-bytes, the plan's own number, and not a share of the memory
```

What the metrics mean is said in `planner.serving_plans.request`, and beside each target here.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, model_validator

from planner.documents import Document
from planner.errors import InputError
from planner.models.bundled import find_bundled
from planner.models.specs import ModelSpec
from planner.requests.request import Bounds
from planner.schema.field_types import Degree, Length, Text
from planner.schema.routing_file import HistogramFile
from planner.schema.serve_trace import read_trace
from planner.schema.spec import SCHEMA, known_schema
from planner.schema.strict import Closed
from planner.schema.translate import complaint, shown, validated
from planner.serving_plans.request import (
    DEFAULT_PERCENTILE,
    MAX_REQUESTS,
    Arrivals,
    CacheSize,
    Lengths,
    ServeConstraints,
    ServeObjective,
    ServeRequest,
    ServeWorkload,
    SharedPrefix,
    Speculation,
    Splits,
    Targets,
    Trace,
)

CONFIG_FILE = "config.json"
"""How Hugging Face calls the description of a model, beside its weights."""

Positive = Annotated[float, Field(strict=True, gt=0, le=1e9)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Milliseconds = Annotated[float, Field(strict=True, gt=0, le=1e9)]

DIMENSIONS = (
    "tp",
    "pp",
    "dp",
    "dcp",
    "max_num_seqs",
    "max_num_batched_tokens",
    "num_speculative_tokens",
    "redundant_experts",
)
"""Dimensions of an engine that can be pinned or bounded by numbers."""


class LengthsFile(Closed):
    """Lengths in tokens: all from min to max as likely, or lognormal with a mean, cut at max."""

    min: Length = 1
    max: Annotated[Length, Field(description="Give the longest length in tokens.")]
    mean: Positive | None = None
    sigma: Annotated[float, Field(strict=True, gt=0, le=4)] | None = None

    @model_validator(mode="after")
    def _is_a_distribution(self) -> "LengthsFile":
        if self.min > self.max:
            raise complaint("No length lies between min and max.", "Give a min that is not above max.", field="min")
        if (self.mean is None) != (self.sigma is None):
            given = "mean" if self.sigma is None else "sigma"
            raise complaint(f"`{given}` alone is no distribution.", "Give mean and sigma, or neither.", field=given)
        if self.mean is not None and not self.min <= self.mean <= self.max:
            raise complaint("The mean does not lie between min and max.", "Give a max above the mean.", field="mean")
        return self

    def to_lengths(self) -> Lengths:
        """Return the lengths."""
        return Lengths(shortest=self.min, longest=self.max, mean=self.mean, sigma=self.sigma)


def _lengths(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"min": value, "max": value}
    if not isinstance(value, dict | LengthsFile):
        wanted = "Give tokens, such as 2048, {min: 500, max: 4000}, or {mean: 1800, sigma: 0.8, max: 16000}."
        raise complaint(f"{shown(value)} is no length.", wanted)
    return value


LengthsChoice = Annotated[LengthsFile, BeforeValidator(_lengths, json_schema_input_type=Length | LengthsFile)]


class PrefixFile(Closed):
    """A beginning that prompts share; `hit_fraction` of the requests find it in the cache."""

    tokens: Annotated[Length, Field(description="Give the tokens of the shared beginning.")]
    hit_fraction: Fraction = 1.0

    def to_prefix(self) -> SharedPrefix:
        """Return the prefix."""
        return SharedPrefix(tokens=self.tokens, hit_fraction=self.hit_fraction)


def _percentile(value: object) -> object:
    if value == "mean":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 99.9:
        raise complaint("This is no percentile.", "Give a number from 1 to 99.9, such as 90, or mean.")
    return float(value)


class TargetsFile(Closed):
    """What requests must keep, in milliseconds."""

    ttft_ms: Annotated[
        Milliseconds | None,
        Field(
            description="Longest time from a request's arrival at the engine to its first token there; routers and "
            "networks in front are not in it."
        ),
    ] = None
    tpot_ms: Annotated[
        Milliseconds | None,
        Field(
            description="Longest time of a token behind the first: (E2E - TTFT) / (output tokens - 1), the mean of a "
            "request's latencies between tokens (ITL)."
        ),
    ] = None
    e2e_ms: Annotated[
        Milliseconds | None, Field(description="Longest time from a request's arrival to its last token (E2E).")
    ] = None
    percentile: Annotated[
        float | Literal["mean"],
        BeforeValidator(_percentile, json_schema_input_type=float | Literal["mean"]),
        Field(description="Percent of the requests that must keep each target by itself, or mean."),
    ] = DEFAULT_PERCENTILE
    attainment: Annotated[
        Fraction | None, Field(description="Part of the requests that must keep all targets at once.")
    ] = None

    @model_validator(mode="after")
    def _has_targets_to_attain(self) -> "TargetsFile":
        if self.attainment is not None and self.ttft_ms is None and self.tpot_ms is None and self.e2e_ms is None:
            raise complaint(
                "`attainment` is given, but no target.", "Add ttft_ms, tpot_ms or e2e_ms.", field="attainment"
            )
        return self

    def to_targets(self) -> Targets:
        """Return the targets."""

        def seconds(milliseconds: float | None) -> float | None:
            return None if milliseconds is None else milliseconds / 1e3

        return Targets(
            ttft_seconds=seconds(self.ttft_ms),
            tpot_seconds=seconds(self.tpot_ms),
            e2e_seconds=seconds(self.e2e_ms),
            percentile=None if self.percentile == "mean" else float(self.percentile),
            attainment=self.attainment,
        )


class SpeculativeFile(Closed):
    """A smaller model that may guess tokens ahead; how many is decided."""

    draft: Annotated[
        object, Field(description="Give a bundled name, the path of a Hugging Face config.json, or the model inline.")
    ]
    acceptance: Annotated[
        float,
        Field(
            strict=True,
            gt=0,
            lt=1,
            description="Give the measured part of guesses that the model takes where it took those before them.",
        ),
    ]
    served_draft: Text | None = None


class ServeWorkloadFile(Closed):
    """Traffic, targets and number formats."""

    kind: Annotated[Literal["serve"], Field(description="Give kind: serve.")]
    input: LengthsChoice | None = None
    output: LengthsChoice | None = None
    trace: Text | None = None
    arrivals: Arrivals = Arrivals.POISSON
    burstiness: Annotated[float, Field(strict=True, ge=0.01, le=1e3)] = 1.0
    requests_per_second: Positive | None = None
    concurrency: Annotated[StrictInt, Field(ge=1, le=1 << 20)] | None = None
    num_requests: Annotated[StrictInt, Field(ge=1, le=1 << 40)] | None = None
    prefix: PrefixFile | None = None
    slo: TargetsFile = TargetsFile()
    quantization: Text = "bf16"
    kv_cache_dtype: Literal["bfloat16", "fp8"] = "bfloat16"
    max_model_len: Length | None = None
    routing: HistogramFile | None = None

    @model_validator(mode="after")
    def _is_one_traffic(self) -> "ServeWorkloadFile":
        if self.trace is None:
            for name in ("input", "output"):
                if getattr(self, name) is None:
                    raise complaint(
                        f"`{name}` is missing.", f"Give {name}: 1024, a distribution, or a trace.", field="kind"
                    )
        elif self.input is not None or self.output is not None:
            name = "input" if self.input is not None else "output"
            raise complaint(
                f"`{name}` is given beside `trace`, which has the lengths.", "Give one of the two.", field=name
            )
        self._check_arrivals()
        return self

    def _check_arrivals(self) -> None:
        closed = self.arrivals is Arrivals.CLOSED
        by_the_clock = self.arrivals is Arrivals.POISSON
        wrong = {
            "trace": self.arrivals is Arrivals.TRACE and self.trace is None,
            "burstiness": self.burstiness != 1.0 and not by_the_clock,
            "requests_per_second": self.requests_per_second is not None and not by_the_clock,
            "concurrency": self.concurrency is not None and not closed,
            "num_requests": self.num_requests is not None and self.arrivals is not Arrivals.OFFLINE,
            "slo": self.arrivals is Arrivals.OFFLINE and bool(self.slo.to_targets().given),
        }
        hints = {
            "trace": "Add the file of the trace.",
            "burstiness": "It shapes arrivals: poisson.",
            "requests_per_second": "It is the rate of arrivals: poisson.",
            "concurrency": "It is the load of arrivals: closed-loop.",
            "num_requests": "It is the size of arrivals: offline.",
            "slo": "An offline batch has no targets.",
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise complaint(
                    f"`{name}` and `arrivals` = {self.arrivals} do not go together.",
                    hints[name],
                    field="arrivals" if name == "trace" else name,
                )

    def to_workload(self, trace: Trace | None) -> ServeWorkload:
        """Return the workload.

        Args:
            trace: What the file of `trace` holds.
        """
        prompts = None if self.input is None else self.input.to_lengths()
        outputs = None if self.output is None else self.output.to_lengths()
        return ServeWorkload(
            prompts=prompts,
            outputs=outputs,
            trace=trace,
            arrivals=self.arrivals,
            burstiness=self.burstiness,
            requests_per_second=self.requests_per_second,
            concurrency=self.concurrency,
            num_requests=self.num_requests,
            prefix=None if self.prefix is None else self.prefix.to_prefix(),
            targets=self.slo.to_targets(),
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            max_model_len=self.max_model_len or _longest(prompts, outputs, trace),
        )


def _longest(prompts: Lengths | None, outputs: Lengths | None, trace: Trace | None) -> int:
    """Return the tokens of the longest prompt and its answer."""
    if trace is not None:
        return max(prompt + output for prompt, output in zip(trace.prompts_N, trace.outputs_N, strict=True))
    assert prompts is not None
    assert outputs is not None
    return prompts.longest + outputs.longest


def _shortest_prompt(prompts: Lengths | None, trace: Trace | None) -> int:
    """Return the tokens of the shortest prompt."""
    if trace is not None:
        return min(trace.prompts_N)
    assert prompts is not None
    return prompts.shortest


class ServeConstraintsFile(Closed):
    """What the user pins or bounds."""

    tp: Degree | None = None
    pp: Degree | None = None
    dp: Degree | None = None
    dcp: Degree | None = None
    expert_parallel: StrictBool | None = None
    max_num_seqs: Degree | None = None
    max_num_batched_tokens: Degree | None = None
    num_speculative_tokens: Degree | None = None
    redundant_experts: Degree | None = None
    split: Splits = Splits.ALLOWED
    mixed: StrictBool = True
    max_price_per_hour: Positive | None = None
    max_watts: Positive | None = None

    def to_constraints(self) -> ServeConstraints:
        """Return the constraints; what is not constrained is left out."""
        given: dict[str, Bounds | None] = {name: getattr(self, name) for name in DIMENSIONS}
        return ServeConstraints(
            degrees={name: bounds for name, bounds in given.items() if bounds is not None},
            expert_parallel=self.expert_parallel,
            split=self.split,
            mixed=self.mixed,
            max_price_per_hour=self.max_price_per_hour,
            max_watts=self.max_watts,
        )


class ServeSpecFile(Closed):
    """A whole serving spec; `model` and the clusters are read by their own schemas."""

    schema_version: Annotated[
        int, BeforeValidator(known_schema), Field(alias="schema", description=f"Add schema: {SCHEMA} as first line.")
    ]
    model: Annotated[
        object, Field(description="Give a bundled name, the path of a Hugging Face config.json, or the model inline.")
    ]
    cluster: Annotated[object, Field(description="Give a cluster, such as {preset: dgx-h100, nodes: 1}.")] = None
    clusters: Annotated[list[object], Field(min_length=1, max_length=16)] | None = None
    workload: ServeWorkloadFile
    speculative: SpeculativeFile | None = None
    constraints: ServeConstraintsFile = ServeConstraintsFile()
    target: Literal["vllm"] = "vllm"
    objective: ServeObjective = ServeObjective.GOODPUT
    served_model: Text | None = None
    gpu_memory_utilization: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    cache_size: Annotated[
        CacheSize | None,
        Field(
            description="Give share for --gpu-memory-utilization, bytes for --kv-cache-memory-bytes, or leave it out."
        ),
    ] = None
    seed: Annotated[StrictInt, Field(ge=0, le=1 << 31)] = 0

    @model_validator(mode="after")
    def _is_complete(self) -> "ServeSpecFile":
        if (self.cluster is None) == (self.clusters is None):
            what = "There is no cluster." if self.cluster is None else "`cluster` is given beside `clusters`."
            raise complaint(
                what,
                "Give cluster: {preset: dgx-h100, nodes: 1}, or clusters: with one entry for each kind of GPU.",
                field="" if self.cluster is None else "clusters",
            )
        workload = self.workload
        if workload.concurrency is not None and self.constraints.split is Splits.ONLY:
            raise complaint(
                "`concurrency` and `constraints.split` = only do not go together.",
                "A fixed number under way is planned for engines that do everything: leave out one of the two.",
                field="constraints",
            )
        has_load = workload.requests_per_second is not None or workload.arrivals is Arrivals.TRACE
        if self.objective is not ServeObjective.GOODPUT and not has_load:
            raise complaint(
                f"`objective` = {self.objective} needs a load to bear.",
                "Add requests_per_second to the workload.",
                field="objective",
            )
        return self


def read_serve_request(document: Document, *, base: Path, model_name: str, draft: ModelSpec | None) -> ServeRequest:
    """Return what a serving spec asks for; its models and clusters are only checked to be there.

    Args:
        document: The spec.
        base: Directory that paths in it are relative to.
        model_name: What engines are told to load where the spec does not say `served_model`.
        draft: The draft that the spec names; None without.

    Raises:
        InputError: Anything is wrong with it.
    """
    data = document.data
    spec = validated(lambda: ServeSpecFile.model_validate(data), model=ServeSpecFile, document=document)
    trace = None
    if spec.workload.trace is not None:
        path = ("workload", "trace")
        trace = read_trace(spec.workload.trace, base=base, location=document.locate(path))
        if spec.workload.arrivals is Arrivals.TRACE and not trace.arrivals_N:
            raise InputError(
                f"{trace.file} has no arrivals.",
                location=document.locate(path),
                hint="Add a column `arrival` in seconds, or give arrivals: poisson.",
            )
    workload = spec.workload.to_workload(trace)
    _check_lengths(workload, document)
    return ServeRequest(
        workload=workload,
        constraints=spec.constraints.to_constraints(),
        objective=spec.objective,
        served_model=spec.served_model or model_name,
        gpu_memory_utilization=spec.gpu_memory_utilization,
        seed=spec.seed,
        cache_size=spec.cache_size,
        speculation=_speculation(spec.speculative, draft, base=base),
    )


def _speculation(file: SpeculativeFile | None, draft: ModelSpec | None, *, base: Path) -> Speculation | None:
    if file is None or draft is None:
        return None
    served = file.served_draft or served_name(file.draft, draft, base=base)
    return Speculation(model=draft, served_model=served, acceptance=file.acceptance)


def served_name(named: object, model: ModelSpec | None, *, base: Path) -> str:
    """Return what engines are told to load: a bundled model's repository, else the directory of its config.json.

    The directory is written in full, because engines start in another one than the spec's; where the model lies
    elsewhere on their nodes, the spec says so (`served_model`, `served_draft`). A model in our own form has no files
    that an engine could load: its name stands for them.

    Args:
        named: What the spec names.
        model: The model; None where it cannot be read.
        base: Directory that paths are relative to.
    """
    bundled = find_bundled(named) if isinstance(named, str) else None
    if bundled is not None:
        return next((alias for alias in bundled.aliases if "/" in alias), bundled.name)
    if model is None or not isinstance(named, str):
        return "model" if model is None else model.name
    file = base / Path(named).expanduser()
    directory = file.parent if file.name == CONFIG_FILE else file
    return str(directory.resolve()) if (directory / CONFIG_FILE).is_file() else named


def _check_lengths(workload: ServeWorkload, document: Document) -> None:
    """Raise for sequences that engines would refuse, and beginnings longer than the prompts that share them."""
    longest = _longest(workload.prompts, workload.outputs, workload.trace)
    if workload.max_model_len < longest:
        raise InputError(
            f"`max_model_len` = {workload.max_model_len} is less than the longest prompt and answer, {longest} tokens.",
            location=document.locate(("workload", "max_model_len")),
            hint=f"Give at least {longest}, or leave it out.",
        )
    shortest = _shortest_prompt(workload.prompts, workload.trace)
    if workload.prefix is not None and workload.prefix.tokens >= shortest:
        raise InputError(
            f"The shared beginning has {workload.prefix.tokens} tokens, the shortest prompt {shortest}.",
            location=document.locate(("workload", "prefix", "tokens")),
            hint="Give less than the shortest prompt: at least its last token is computed.",
        )
    if workload.trace is not None and len(workload.trace.prompts_N) > MAX_REQUESTS:
        raise InputError(
            f"The trace has {len(workload.trace.prompts_N):,} requests.",
            location=document.locate(("workload", "trace")),
            hint=f"Give at most {MAX_REQUESTS:,}.",
        )
