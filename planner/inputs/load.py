"""A spec file and its overrides -> model, cluster and request, checked against one another.

Every part of a spec may be inline or the path of a file, relative to the spec. Files are put in place of their paths
first, so that an override reaches into them and every message still points at the file that holds the value.
Everything that is wrong is reported at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from planner.documents import Document, Node, Override, load_document, option_override, parse_override
from planner.errors import CombinedInputError, InputError, Location
from planner.experts.of_model import routed_experts
from planner.experts.ordering import reordered
from planner.inputs.contradictions import contradictions
from planner.models.specs import ModelSpec
from planner.requests.request import PlanRequest
from planner.schema.model import read_model
from planner.schema.routing_file import ROUTING, RoutingFile, read_routing
from planner.schema.spec import SCHEMA, read_request
from planner.schema.translate import all_of, shown, validated
from profiles.errors import CatalogueError
from profiles.hardware import Cluster
from profiles.package_data import Section, resolve_name
from profiles.schema import ClusterEntry, MixedClusterEntry

T = TypeVar("T")

SERVE = "serve"
"""Kind of a workload that `planner.serving_search.inputs` reads."""

GROUPS = "groups"
"""Key of a cluster that has nodes of several kinds."""

_PARTS_IN_FILES = ("cluster", "workload", "constraints")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Everything that a plan is made from.

    Args:
        model: What is trained.
        cluster: Where.
        request: How, and under which constraints.
    """

    model: ModelSpec
    cluster: Cluster
    request: PlanRequest


def load_inputs(path: Path, overrides: Sequence[str] = (), *, options: Mapping[str, str] | None = None) -> Inputs:
    """Return what the spec in `path` asks for.

    Args:
        path: The spec.
        overrides: Texts `a.b=c`, applied in order before anything is checked.
        options: Field to the value that an option of the same name gives it, applied last.

    Raises:
        InputError: Anything is wrong with the spec or a file that it names.
    """
    return _without_contradictions(_load(path, [parse_override(text) for text in overrides], options or {}))


def spec_document(path: Path, overrides: Sequence[str] = (), options: Mapping[str, str] | None = None) -> Document:
    """Return the spec in `path` with everything that it names in files, and with its overrides; nothing is checked.

    Args:
        path: The spec.
        overrides: As of `load_inputs`.
        options: As of `load_inputs`.

    Raises:
        InputError: A file cannot be read, or an override reaches nowhere.
    """
    return _document(path, [parse_override(text) for text in overrides], options or {})


def kind_of(document: Document) -> object:
    """Return what a spec says its workload is; None where it says nothing."""
    node = document.node(("workload", "kind"))
    return node.data() if node is not None else None


def load_alternative(
    path: Path, overrides: Sequence[str], settings: Sequence[str], *, options: Mapping[str, str] | None = None
) -> tuple[Inputs, tuple[InputError, ...]]:
    """Return what a spec with other constraints asks for, and what in it contradicts itself.

    Args:
        path: The spec.
        overrides: Texts `a.b=c`, as of `load_inputs`.
        settings: Texts `tp=8`, each a constraint, applied after them.
        options: As of `load_inputs`.

    Raises:
        InputError: Anything but a contradiction is wrong with the spec, a file that it names, or an override.
    """
    pinned = [parse_override(f"constraints.{text}", said=f"--why-not {text}") for text in settings]
    return _load(path, [*(parse_override(text) for text in overrides), *pinned], options or {})


def _load(
    path: Path, overrides: Sequence[Override], options: Mapping[str, str]
) -> tuple[Inputs, tuple[InputError, ...]]:
    return _read(_document(path, overrides, options), base=path.parent)


def _document(path: Path, overrides: Sequence[Override], options: Mapping[str, str]) -> Document:
    base = path.parent
    document = _spec_in(path)
    for override in overrides:
        if len(override.path) > 1:
            document = _with_file(document, override.path[0], base)
        document = document.with_node(override.path, override.node)
    for name, value in options.items():
        override = option_override(name, value)
        document = document.with_node(override.path, override.node)
    for part in _PARTS_IN_FILES:
        document = _with_file(document, part, base)
    return document


def _spec_in(path: Path) -> Document:
    """Return the document in a file; what is plainly another kind of file is refused by its name."""
    for name, (what, hint) in _OTHERS_IN_DIRECTORIES.items():
        if path.is_dir() and (path / name).is_file():
            raise InputError(f"This is {what}, not a spec.", location=Location(file=str(path)), hint=_for(hint, path))
    document = load_document(path)
    keys = document.data.keys() if isinstance(document.data, dict) else frozenset[str]()
    for these, (what, hint) in _OTHERS.items():
        if these <= keys and "workload" not in keys:
            raise InputError(f"This is {what}, not a spec.", location=document.locate(), hint=_for(hint, path))
    return document


_PLAN = ("a plan", "`shardwright explain` and `shardwright emit` read it; to plan again, give its spec.")
_MODEL = "Write a spec for it: shardwright init spec.yaml --model {path}"
_OTHERS: Mapping[frozenset[str], tuple[str, str]] = {
    frozenset({"plans", "search"}): _PLAN,
    frozenset({"architectures"}): ("a model's config.json", _MODEL),
    frozenset({"hidden_size", "num_hidden_layers"}): ("a model", _MODEL),
    frozenset({"gpu", "nodes"}): ("a cluster", "Name it in a spec: cluster: {path}"),
}
"""Keys of other files than specs, what they are then, and what to do with them."""

_OTHERS_IN_DIRECTORIES: Mapping[str, tuple[str, str]] = {
    "plan.json": ("the directory of a plan", _PLAN[1]),
    "config.json": ("the directory of a model", _MODEL),
}
"""The same for files that name their directory."""


def _for(hint: str, path: Path) -> str:
    return hint.replace("{path}", str(path))


def _without_contradictions(read: tuple[Inputs, tuple[InputError, ...]]) -> Inputs:
    inputs, found = read
    if found:
        raise all_of(list(found))
    return inputs


def _read(document: Document, *, base: Path) -> tuple[Inputs, tuple[InputError, ...]]:
    """Return what a spec asks for, and what in it contradicts itself."""
    errors: list[InputError] = []
    request = _collect(errors, lambda: read_request(document, base=base))
    fields = document.data if isinstance(document.data, dict) else {}
    described = document.node(ROUTING)
    cluster = _collect(errors, lambda: read_cluster(document, ("cluster",))) if "cluster" in fields else None
    model = _collect(errors, lambda: resolve_model(document, base)) if "model" in fields else None
    if request is None or cluster is None or model is None:
        raise all_of(errors)
    if described is not None and described.data() is not None:
        file = RoutingFile.model_validate(described.data())
        routing = read_routing(file, model=model, document=document, base=base)
        if file.reorders:
            routing = reordered(routing, num_groups=routed_experts(model).router.limiting_groups)
        request = replace(request, workload=replace(request.workload, routing=routing))
    inputs = Inputs(model=model, cluster=cluster, request=request)
    return inputs, tuple(contradictions(model, cluster, request, document))


def resolve_model(document: Document, base: Path) -> ModelSpec:
    """Return the model of a spec."""
    node = document.node(("model",))
    reference = node.data() if node is not None else None
    return read_model(reference, document=document, path=("model",), base=base)


def read_cluster(document: Document, path: tuple[str | int, ...] = ()) -> Cluster:
    """Return the cluster that stands at `path` of a document."""
    node = document.node(path)
    data = node.data() if node is not None else None
    kind = MixedClusterEntry if isinstance(data, dict) and GROUPS in data else ClusterEntry
    entry = validated(lambda: kind.model_validate(data), model=kind, document=document, path=path)
    try:
        return entry.to_cluster()
    except ValueError as error:
        raise InputError(f"This is no cluster: {error}.", location=document.locate(path)) from None


def _collect(errors: list[InputError], read: Callable[[], T]) -> T | None:
    """Return what `read` returns; keep what is wrong for later."""
    try:
        return read()
    except CombinedInputError as error:
        errors.extend(error.errors)
    except InputError as error:
        errors.append(error)
    return None


def _with_file(document: Document, part: str | int, base: Path) -> Document:
    """Return the document with the path at `part` replaced by what the file holds, if it is a path."""
    node = document.node((part,))
    if node is None or not isinstance(node.content, str) or part not in ("model", *_PARTS_IN_FILES):
        return document
    reference = node.content
    if part == "cluster" and (preset := _preset(node)) is not None:
        return document.with_node((part,), preset)
    location = document.locate((part,))
    file = _file(reference, base)
    if part == "model" and file is None:
        raise InputError(
            f"{shown(reference)} is not the path of a model, so no field of it can be set.",
            location=location,
            hint="Override the whole model, or describe it in a file.",
        )
    if file is None:
        known = "neither a preset nor a file" if part == "cluster" else "not a file"
        raise InputError(f"{shown(reference)} is {known}.", location=location, hint=_nearest(part, reference))
    root = load_document(file).root
    if root.content is None:
        raise InputError("The file is empty.", location=root.location, hint=f"Describe the {part} in it.")
    return document.with_node((part,), root if part == "model" else _without_version(root))


def _file(reference: str, base: Path) -> Path | None:
    """Return the file that a reference names, the `config.json` of a directory, or None."""
    try:
        file = base / Path(reference).expanduser()
        if file.is_dir():
            file /= "config.json"
        return file if file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, no home directory
        return None


def _preset(node: Node) -> Node | None:
    """Return `{preset: NAME}` for the name of a preset."""
    try:
        resolve_name(Section.CLUSTERS, str(node.content))
    except CatalogueError:
        return None
    return Node({"preset": node}, node.location, {"preset": node.location})


def _nearest(part: str | int, reference: str) -> str:
    if part == "cluster":
        try:
            resolve_name(Section.CLUSTERS, reference)
        except CatalogueError as error:
            return f"{str(error)[:1].upper()}{str(error)[1:]}"
    return f"Give the {part} inline, or the path of its file, relative to the spec."


def _without_version(root: Node) -> Node:
    """Return a file's mapping without its `schema: 1`."""
    if not isinstance(root.content, dict) or "schema" not in root.content:
        return root
    version = root.content["schema"]
    if version.content != SCHEMA or isinstance(version.content, bool):
        raise InputError(
            "This version of the schema is not known.", location=version.location, hint=f"Give schema: {SCHEMA}."
        )
    return replace(root, content={key: child for key, child in root.content.items() if key != "schema"})
