"""`model:` of a spec -> `ModelSpec`: a bundled name, a path, or a mapping.

A text is looked up in this order: a bundled name or alias; a directory, whose `config.json` is read; a file, which
is a Hugging Face config or a model in our own form. Paths are relative to the spec's own directory, so a spec means
the same wherever it is planned from. A directory that has the name of a bundled model is meant with `./` in front.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from planner.documents import Document, load_document
from planner.documents.document import format_path
from planner.errors import InputError, Location
from planner.models.bundled import find_bundled, nearest_names
from planner.models.specs import ModelSpec
from planner.schema.common_keys import HARMLESS, QUANTIZED_FILES
from planner.schema.huggingface import is_config, read_config
from planner.schema.inline_model import MAX_NAME, InlineModel, read_inline
from planner.schema.translate import shown

_WEIGHTS = frozenset({".gguf", ".ggml", ".safetensors", ".bin", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".npz"})

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_FORMS = "Give a bundled name (`shardwright models` lists them), the path of a config.json, or the model's sizes."


def read_model(reference: object, *, document: Document, path: tuple[str | int, ...], base: Path) -> ModelSpec:
    """Return the model that a spec names or describes.

    Args:
        reference: The value of `model:`.
        document: The document that holds it.
        path: Where in the document it stands.
        base: Directory that paths are relative to.
    """
    location = document.locate(path)
    if isinstance(reference, str):
        return _named(reference, location=location, base=base)
    if isinstance(reference, Mapping):
        return _described(reference, document=document, path=path, name="inline")
    what = format_path(path) or "document"
    raise InputError(f"`{what}` = {shown(reference)} is neither a name nor a mapping.", location=location, hint=_FORMS)


def _named(reference: str, *, location: Location, base: Path) -> ModelSpec:
    """Return the model of a bundled name or a path."""
    bundled = find_bundled(reference.strip())
    if bundled is not None:
        return bundled.decoder.spec()
    if not reference.strip():
        raise InputError("The model's name is empty.", location=location, hint=_FORMS)
    try:
        file = base / Path(reference).expanduser()
        is_directory, is_file, exists = file.is_dir(), file.is_file(), file.exists()
    except (OSError, RuntimeError, ValueError):  # too long, no home directory, a null byte
        raise _unknown(reference, location) from None
    if is_directory:
        return _from_directory(file, reference, location=location)
    if is_file:
        return _from_file(file, name=_name_of(file), location=location)
    if exists:
        raise InputError(f"{shown(reference)} is not a regular file.", location=location, hint=_FORMS)
    raise _unknown(reference, location)


def _from_directory(directory: Path, reference: str, *, location: Location) -> ModelSpec:
    config = directory / "config.json"
    if not config.is_file():
        raise InputError(
            f"The directory {shown(reference)} holds no config.json.",
            location=location,
            hint="Give the directory of a Hugging Face model, or the path of a config.json.",
        )
    return _from_file(config, name=_name_of(config), location=location)


def _from_file(file: Path, *, name: str, location: Location) -> ModelSpec:
    """Return the model that a file describes."""
    if file.suffix.lower() in _WEIGHTS or _is_gguf(file):
        raise InputError(
            f"{shown(file.name)} holds weights, not a description of the model.",
            location=location,
            hint="Give the model's config.json.",
        )
    quantization = file.with_name("hf_quant_config.json")
    if file.name == "config.json" and quantization.is_file():
        _check_quantization(load_document(quantization))
    document = load_document(file)
    fields = document.data
    if not isinstance(fields, Mapping):
        what = "is empty" if fields is None else "does not hold a mapping"
        raise InputError(f"The file {what}.", location=document.locate(), hint=_FORMS)
    if fields.keys() == {"producer", "quantization"}:
        raise InputError(
            "The file describes how a model was quantised, not the model.",
            location=document.locate(),
            hint="Give the config.json of the unquantised model.",
        )
    if not is_config(fields) and _is_anonymous_config(fields, file):
        raise InputError(
            "`architectures` is missing, and so is `model_type`: this config does not say what kind of model it is.",
            location=document.locate(),
            hint="Use the config.json that was published with the model.",
        )
    return _described(fields, document=document, path=(), name=name)


def _check_quantization(document: Document) -> None:
    """Refuse a way of storing weights, given beside a config, that is not known; known ones leave every shape as it is.

    Training needs the shapes of the unquantised model only, which the config gives.
    """
    section = document.data.get("quantization") if isinstance(document.data, Mapping) else None
    method = section.get("quant_algo") if isinstance(section, Mapping) else None
    if method not in QUANTIZED_FILES:
        raise InputError(
            f"`quant_algo` = {shown(method)} is not known; it may change shapes.",
            location=document.locate(("quantization", "quant_algo")),
            hint=f"Known are {', '.join(QUANTIZED_FILES)}. A plan needs the config of the unquantised model.",
        )


def _is_anonymous_config(fields: Mapping[str, object], file: Path) -> bool:
    """Return whether a mapping that names no class is a Hugging Face config all the same, and not our own form."""
    own = InlineModel.model_fields
    foreign = {key for key in fields if key not in own and key != "schema"}
    if file.name == "config.json":
        return bool(foreign) or any(field.is_required() and key not in fields for key, field in own.items())
    return not foreign.isdisjoint(HARMLESS)


def _described(
    fields: Mapping[str, object], *, document: Document, path: tuple[str | int, ...], name: str
) -> ModelSpec:
    """Return the model of a mapping: a Hugging Face config or our own form."""
    if is_config(fields):
        return read_config(fields, document=document, path=path, name=name)
    return read_inline(fields, document=document, path=path, name=name)


def _is_gguf(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False  # reading it as a document says what is wrong


def _name_of(file: Path) -> str:
    """Return what to call the model in a file: the directory of a config.json, else the file's own name."""
    resolved = file.resolve()
    name = resolved.parent.name if resolved.stem == "config" else resolved.stem.removesuffix("_config")
    printable = "".join(character if character.isprintable() else "?" for character in name)
    return printable[:MAX_NAME] or "model"


def _unknown(reference: str, location: Location) -> InputError:
    """Return the error of a text that is neither a bundled name nor a path."""
    nearest = nearest_names(reference)
    proposal = f"Did you mean {' or '.join(f'`{name}`' for name in nearest)}? " if nearest else ""
    if _REPOSITORY.fullmatch(reference) and not reference.endswith((".json", ".yaml", ".yml")):
        return InputError(
            f"{shown(reference)} is neither bundled nor a directory; nothing is fetched from the network.",
            location=location,
            hint=f"{proposal}Otherwise download its config.json and give the path.",
        )
    return InputError(
        f"There is no bundled model and no file {shown(reference)}.", location=location, hint=f"{proposal}{_FORMS}"
    )
