"""A serving spec and its overrides -> model, GPUs and request, checked against one another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from planner.documents import Document
from planner.errors import CombinedInputError, InputError
from planner.inputs.load import read_cluster, resolve_model, spec_document
from planner.models.blocks import LinearAttention, StateSpace
from planner.models.specs import ModelSpec
from planner.schema.model import read_model
from planner.schema.routing_file import ROUTING, HistogramFile, read_routing
from planner.schema.serve_spec import read_serve_request, served_name
from planner.schema.translate import all_of
from planner.serving.formats import formats_of
from planner.serving_plans.request import ServeObjective, ServeRequest
from profiles.hardware import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeInputs:
    """Everything that a serving plan is made from.

    Args:
        model: What is served.
        clusters: On which GPUs, one entry for each kind.
        request: How.
    """

    model: ModelSpec
    clusters: tuple[Cluster, ...]
    request: ServeRequest


def load_serve_inputs(
    path: Path, overrides: Sequence[str] = (), *, options: Mapping[str, str] | None = None
) -> ServeInputs:
    """Return what the serving spec in `path` asks for.

    Args:
        path: The spec.
        overrides: Texts `a.b=c`, applied in order before anything is checked.
        options: Field to the value that an option of the same name gives it, applied last.

    Raises:
        InputError: Anything is wrong with the spec or a file that it names.
    """
    return read_serve_inputs(spec_document(path, overrides, options), base=path.parent)


def read_serve_inputs(document: Document, *, base: Path) -> ServeInputs:
    """Return what a serving spec asks for; paths in it are relative to `base`."""
    inputs, found = checked_serve_inputs(document, base=base)
    if found:
        raise all_of(found)
    return inputs


def checked_serve_inputs(document: Document, *, base: Path) -> tuple[ServeInputs, tuple[InputError, ...]]:
    """Return what a serving spec asks for, and what in it contradicts itself.

    Raises:
        InputError: Anything but a contradiction is wrong with the spec or a file that it names.
    """
    fields = document.data if isinstance(document.data, dict) else {}
    kind = document.node(("workload", "kind"))
    if kind is not None and kind.data() == "train":
        raise InputError(
            "`kind` = train: this spec is of a training run, and servers are asked for.",
            location=document.locate(("workload", "kind")),
            hint="Give a spec with workload: {kind: serve}; `shardwright init --serve` writes one.",
        )
    errors: list[InputError] = []
    model: ModelSpec | None = None
    clusters: tuple[Cluster, ...] = ()
    request: ServeRequest | None = None
    try:
        model = resolve_model(document, base) if "model" in fields else None
    except InputError as error:
        errors += _single(error)
    try:
        clusters = _clusters(document, fields)
    except InputError as error:
        errors += _single(error)
    draft: ModelSpec | None = None
    try:
        draft = _draft(document, fields, base)
    except InputError as error:
        errors += _single(error)
    try:
        name = served_name(fields.get("model"), model, base=base)
        request = read_serve_request(document, base=base, model_name=name, draft=draft)
    except InputError as error:
        errors += _single(error)
    if errors or model is None or request is None:
        raise all_of(errors)
    described = document.node(ROUTING)
    if described is not None and described.data() is not None:
        file = HistogramFile.model_validate(described.data())
        routing = read_routing(file, model=model, document=document, base=base)
        request = replace(request, workload=replace(request.workload, routing=routing))
    inputs = ServeInputs(model=model, clusters=clusters, request=request)
    return inputs, tuple(_contradictions(model, clusters, request, document))


def _draft(document: Document, fields: Mapping[str, object], base: Path) -> ModelSpec | None:
    """Return the model that guesses ahead; None where the spec names none."""
    speculative = fields.get("speculative")
    if not isinstance(speculative, dict) or "draft" not in speculative:
        return None
    return read_model(speculative["draft"], document=document, path=("speculative", "draft"), base=base)


def _single(error: InputError) -> Sequence[InputError]:
    return error.errors if isinstance(error, CombinedInputError) else (error,)


def _clusters(document: Document, fields: Mapping[str, object]) -> tuple[Cluster, ...]:
    listed = fields.get("clusters")
    if isinstance(listed, list):
        return tuple(read_cluster(document, ("clusters", index)) for index in range(len(listed)))
    return (read_cluster(document, ("cluster",)),) if "cluster" in fields else ()


def _contradictions(
    model: ModelSpec, clusters: tuple[Cluster, ...], request: ServeRequest, document: Document
) -> Sequence[InputError]:
    """Return what in a spec does not go together."""
    errors: list[InputError] = []
    workload = request.workload
    if workload.max_model_len > model.max_position_embeddings:
        path = ("workload", "max_model_len") if document.node(("workload", "max_model_len")) else ("workload",)
        errors.append(
            InputError(
                f"Sequences of {workload.max_model_len:,} tokens are longer than {model.name} takes, "
                f"{model.max_position_embeddings:,}.",
                location=document.locate(path),
                hint="Shorten input and output, or max_model_len.",
            )
        )
    try:
        formats_of(workload.quantization, model, cache=workload.kv_cache_dtype)
    except InputError as error:
        errors.append(
            InputError(error.message, location=document.locate(("workload", "quantization")), hint=error.hint)
        )
    errors += _draft_contradictions(model, request, document)
    if workload.routing is None and request.constraints.degrees.get("redundant_experts") is not None:
        errors.append(
            InputError(
                "`redundant_experts` is constrained, and nothing says which experts tokens choose.",
                location=document.locate(("constraints", "redundant_experts")),
                hint="Add routing to the workload, as {histogram: counts.json} or {histogram: zipf:1.0}.",
            )
        )
    names = [cluster.name for cluster in clusters]
    for index, cluster in enumerate(clusters):
        place = document.locate(("clusters", index) if len(clusters) > 1 else ("cluster",))
        if cluster.unequal is not None:
            errors.append(
                InputError(
                    "A serving plan takes nodes of one kind in each cluster.",
                    location=place,
                    hint="List them under clusters:, one entry for each kind.",
                )
            )
        if names.count(cluster.name) > 1:
            errors.append(InputError(f"Two clusters are called {cluster.name}.", location=place, hint="Rename one."))
        needs_price = request.objective is ServeObjective.COST or request.constraints.max_price_per_hour is not None
        if needs_price and cluster.price_per_gpu_hour is None:
            errors.append(
                InputError(
                    f"{cluster.name} has no price, which the plan needs.",
                    location=place,
                    hint="Add price_per_gpu_hour to the cluster.",
                )
            )
    return errors


def _draft_contradictions(model: ModelSpec, request: ServeRequest, document: Document) -> Iterator[InputError]:
    """Yield why a draft cannot guess for a model, as vLLM 0.32.0 checks it or as nothing here prices it."""
    if request.speculation is None:
        if request.constraints.degrees.get("num_speculative_tokens") is not None:
            yield InputError(
                "`num_speculative_tokens` is constrained, and there is no draft.",
                location=document.locate(("constraints", "num_speculative_tokens")),
                hint="Add speculative: {draft: ..., acceptance: ...}.",
            )
        return
    draft, place = request.speculation.model, document.locate(("speculative", "draft"))
    if draft.vocab_size != model.vocab_size:
        yield InputError(
            f"{draft.name} has {draft.vocab_size:,} tokens in its vocabulary, {model.name} {model.vocab_size:,}.",
            location=place,
            hint="vLLM takes a draft of the same vocabulary only.",
        )
    if draft.max_position_embeddings < request.workload.max_model_len:
        yield InputError(
            f"{draft.name} takes {draft.max_position_embeddings:,} tokens, and sequences have up to "
            f"{request.workload.max_model_len:,}.",
            location=place,
            hint="Behind the draft's end nothing is guessed: give one that takes whole sequences, or a shorter"
            " max_model_len.",
        )
    kinds = [block.mixer for block in draft.distinct_blocks]
    if any(isinstance(kind, StateSpace | LinearAttention) for kind in kinds):
        yield InputError(
            f"{draft.name} has recurrent layers.",
            location=place,
            hint="Only drafts with attention are priced: guesses that are not taken leave no trace in their caches.",
        )
