"""The plan spec, as users write it.

```yaml
schema: 1
model: llama-3.1-70b
cluster: {preset: dgx-h100, nodes: 8}
workload: {kind: train, seq_len: 8192, global_batch_size: 512, precision: bf16}
constraints: {tp: 8, pp: [1, 2, 4], micro_batch_size: {max: 4}, recompute: [none, selective]}
objective: cost             # step-time, tokens-per-gpu, days, cost, energy, fewest-nodes or robust
deadline_days: 30           # longest that workload.tokens_to_train may take
node_counts: {min: 2}       # numbers of nodes to choose among; left out, all of the cluster
```

The model and the cluster have schemas of their own, and `documents`, the lengths of the documents in the sequences,
is in `planner.schema.document_lengths`; `routing`, which experts tokens choose, in `planner.schema.routing_file`, and
is read once the model is known. `precision: fp8` alone is an error that lists the recipes: they
differ in memory, hardware and numerics, so none is a default.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, model_validator

from planner.documents import Document
from planner.requests.request import DEFAULT_MEMORY_HEADROOM, Bounds, Constraints, Objective, PlanRequest, Target
from planner.requests.workload import (
    DEFAULT_ROUTING_SKEW,
    AttentionKernel,
    DocumentLengths,
    DType,
    Lora,
    Optimizer,
    TrainMethod,
    TrainWorkload,
)
from planner.schema.document_lengths import DocumentsFile, read_lengths
from planner.schema.field_types import (
    DIMENSIONS,
    LORA_TARGETS,
    ContextKinds,
    Degree,
    LayerCount,
    Length,
    LoraTargets,
    OffloadChoice,
    OffloadedModules,
    PrecisionChoice,
    Probability,
    RecomputeChoice,
    RoutingSkew,
    StateDType,
    TargetChoice,
    Text,
    Texts,
    Tokens,
    ZeroStage,
)
from planner.schema.routing_file import RoutingFile
from planner.schema.strict import Closed
from planner.schema.translate import complaint, shown, suggestion, validated

SCHEMA = 1

KINDS = ("train", "serve")
"""What a spec may plan; this module reads the first."""


def _kind(value: object) -> object:
    if value == "serve":
        raise complaint("`kind` = serve is no training run.", "Give kind: train.")
    if isinstance(value, str) and value != "train":
        hint = f"{suggestion(value, KINDS)}Allowed: {', '.join(KINDS)}."
        raise complaint(f"`kind` = {shown(value)} is not a known value.", hint)
    return value


def known_schema(value: object) -> object:
    """Return the version of a spec's schema; complain of one that is not known."""
    if isinstance(value, bool) or value != SCHEMA:
        raise complaint("This version of the schema is not known.", f"Give schema: {SCHEMA}.")
    return value


class LoraFile(Closed):
    """Adapters of `method: lora`; without alpha the adapter's output is not scaled."""

    rank: Annotated[StrictInt, Field(ge=1, le=65536, description="Give the inner width of the adapters, such as 16.")]
    alpha: Annotated[float, Field(strict=True, gt=0, le=1e6)] | None = None
    target_modules: LoraTargets = LORA_TARGETS

    def to_lora(self) -> Lora:
        """Return the adapters."""
        alpha = float(self.rank) if self.alpha is None else self.alpha
        return Lora(rank=self.rank, alpha=alpha, target_modules=self.target_modules)


class WorkloadFile(Closed):
    """The training run."""

    kind: Annotated[
        Literal["train"], BeforeValidator(_kind), Field(description="Give kind: train, or kind: serve for servers.")
    ]
    seq_len: Annotated[Length, Field(description="Give the tokens of one sequence, such as 8192.")]
    global_batch_size: Annotated[Length, Field(description="Give the sequences of one optimizer step, such as 512.")]
    precision: Annotated[PrecisionChoice, Field(description="Give bf16, fp16 or an fp8 recipe such as fp8-delayed.")]
    master_dtype: StateDType = DType.FP32
    gradient_dtype: StateDType = DType.FP32
    moment_dtype: DType = DType.FP32
    optimizer: Optimizer = Optimizer.ADAM
    attention_kernel: AttentionKernel = AttentionKernel.FLASH
    method: TrainMethod = TrainMethod.PRETRAIN
    lora: LoraFile | None = None
    tokens_to_train: Tokens | None = None
    hidden_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    data_path: Texts = Field(default=[])
    tokenizer_model: Text | None = None
    documents: DocumentsFile | None = None
    routing_skew: RoutingSkew = DEFAULT_ROUTING_SKEW
    routing: RoutingFile | None = None

    @model_validator(mode="after")
    def _says_the_load_once(self) -> "WorkloadFile":
        if self.routing is not None and "routing_skew" in self.model_fields_set:
            raise complaint(
                "`routing_skew` is given beside `routing`, which says the load of every rank.",
                "Give one of the two.",
                field="routing_skew",
            )
        return self

    @model_validator(mode="after")
    def _adapters_belong_to_lora(self) -> "WorkloadFile":
        if self.method is TrainMethod.LORA and self.lora is None:
            raise complaint(
                "`method` = lora needs a description of its adapters.", "Add lora: {rank: 16}.", field="method"
            )
        if self.method is not TrainMethod.LORA and self.lora is not None:
            raise complaint(
                f"`lora` is given, but `method` = {self.method} trains all weights.",
                "Give method: lora, or remove lora.",
                field="lora",
            )
        return self

    def to_workload(self, documents: DocumentLengths | None) -> TrainWorkload:
        """Return the workload.

        Args:
            documents: The lengths that `documents` describes.
        """
        return TrainWorkload(
            seq_len=self.seq_len,
            global_batch_size=self.global_batch_size,
            precision=self.precision,
            master_dtype=self.master_dtype,
            gradient_dtype=self.gradient_dtype,
            moment_dtype=self.moment_dtype,
            optimizer=self.optimizer,
            attention_kernel=self.attention_kernel,
            method=self.method,
            lora=self.lora.to_lora() if self.lora else None,
            tokens_to_train=self.tokens_to_train,
            hidden_dropout=self.hidden_dropout,
            attention_dropout=self.attention_dropout,
            data_path=tuple(self.data_path),
            tokenizer_model=self.tokenizer_model,
            documents=documents,
            routing_skew=float(self.routing_skew),
        )


class ConstraintsFile(Closed):
    """What the user pins or bounds."""

    tp: Degree | None = None
    cp: Degree | None = None
    cp_kind: ContextKinds | None = None
    pp: Degree | None = None
    vpp: Degree | None = None
    dp: Degree | None = None
    ep: Degree | None = None
    etp: Degree | None = None
    zero_stage: ZeroStage | None = None
    micro_batch_size: Degree | None = None
    num_microbatches: Degree | None = None
    offloaded_layers: LayerCount | None = None
    recompute: RecomputeChoice | None = None
    sequence_parallel: StrictBool | None = None
    optimizer_offload: OffloadChoice | None = None
    parameter_offload: StrictBool | None = None
    drive_offload: StrictBool | None = None
    parameter_drives: StrictBool | None = None
    offloaded_modules: OffloadedModules | None = None

    def to_constraints(self) -> Constraints:
        """Return the constraints; what is not constrained is left out."""
        given: dict[str, Bounds | None] = {name: getattr(self, name) for name in DIMENSIONS}
        return Constraints(
            degrees={name: bounds for name, bounds in given.items() if bounds is not None},
            recompute=self.recompute,
            sequence_parallel=self.sequence_parallel,
            cp_kind=self.cp_kind,
            optimizer_offload=self.optimizer_offload,
            parameter_offload=self.parameter_offload,
            drive_offload=self.drive_offload,
            parameter_drives=self.parameter_drives,
            offloaded_modules=self.offloaded_modules,
        )


class SpecFile(Closed):
    """A whole spec; `model` and `cluster` are read by their own schemas."""

    schema_version: Annotated[
        int,
        BeforeValidator(known_schema),
        Field(alias="schema", description=f"Add schema: {SCHEMA} as the first line."),
    ]
    model: Annotated[
        object, Field(description="Give a bundled name, the path of a Hugging Face config.json, or the model inline.")
    ]
    cluster: Annotated[
        object, Field(description="Give a cluster, such as {preset: dgx-h100, nodes: 8}, or the path of its file.")
    ]
    workload: Annotated[
        WorkloadFile,
        Field(
            description="Give the run, such as {kind: train, seq_len: 8192, global_batch_size: 512, precision: bf16}."
        ),
    ]
    constraints: ConstraintsFile = ConstraintsFile()
    memory_headroom: Annotated[float, Field(strict=True, ge=0, le=0.9)] = DEFAULT_MEMORY_HEADROOM
    target: TargetChoice = Target.MEGATRON
    objective: Objective = Objective.STEP_TIME
    deadline_days: Annotated[float, Field(strict=True, gt=0, le=1e6)] | None = None
    node_counts: Degree | None = None

    def to_request(self, documents: DocumentLengths | None) -> PlanRequest:
        """Return everything but the model and the cluster.

        Args:
            documents: The lengths that `workload.documents` describes.
        """
        return PlanRequest(
            workload=self.workload.to_workload(documents),
            constraints=self.constraints.to_constraints(),
            memory_headroom=self.memory_headroom,
            target=self.target,
            objective=self.objective,
            deadline_days=self.deadline_days,
            node_counts=self.node_counts,
        )


def read_request(document: Document, *, base: Path) -> PlanRequest:
    """Return what a spec asks for; its model and cluster are only checked to be there.

    Args:
        document: The spec.
        base: Directory that paths in it are relative to.
    """
    data = document.data
    spec = validated(lambda: SpecFile.model_validate(data), model=SpecFile, document=document)
    described = spec.workload.documents
    lengths = None
    if described is not None:
        path = ("workload", "documents")
        lengths = read_lengths(described, seq_len=spec.workload.seq_len, document=document, path=path, base=base)
    return spec.to_request(lengths)
