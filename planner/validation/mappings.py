"""What a YAML or JSON file describes: a configuration of one of the frameworks, or a file of our own."""

from collections.abc import Sequence
from pathlib import Path

from planner.documents import parse_document
from planner.readers.deepspeed_run import looks_like_deepspeed, plain_json, read_deepspeed_runs
from planner.readers.flag_tables import Framework
from planner.readers.megatron_lists import read_megatron_mapping
from planner.readers.vllm_run import looks_like_config, read_vllm_config
from planner.validation.deepspeed_files import MAX_CHARACTERS, deepspeed_document, launches_of
from planner.validation.own_files import names_plan_keys, own_kind
from planner.validation.source import Asked, Sizes, Source


def read_mapping(text: str, *, file: str, asked: Asked, named: Sequence[Path]) -> Source:
    """Return what a YAML or JSON file describes; no runs where that is nothing that is known.

    Args:
        text: The file.
        file: What messages call it.
        asked: What the user says beside the files.
        named: All files that are judged, for the scripts among them that name a configuration.

    Raises:
        InputError: It is damaged.
    """
    sizes: Sizes = {"num_gpus": asked.num_gpus, "gpus_per_node": asked.gpus_per_node}
    configuration = deepspeed_document(text, file=file) if file.lower().endswith(".json") else None
    if configuration is not None and looks_like_deepspeed(configuration.data):
        version, launches = asked.version(Framework.DEEPSPEED), launches_of(Path(file), named)
        return Source(file=file, text=text, runs=read_deepspeed_runs(configuration, launches, version=version, **sizes))
    if len(text) > MAX_CHARACTERS and not names_plan_keys(text):
        return Source(file=file, text=text, runs=())
    if configuration is None or plain_json(text) != text:
        configuration = parse_document(text, file=file)
    root = configuration.root
    version = asked.version(Framework.VLLM)
    if isinstance(root.content, dict) and looks_like_config(tuple(root.content), version):
        return Source(file=file, text=text, runs=(read_vllm_config(text, file=file, version=version, **sizes),))
    own = own_kind(root.content)
    if own is not None:
        return Source(file=file, text=text, runs=(), own=own)
    runs = read_megatron_mapping(root, file=file, version=asked.version(Framework.MEGATRON), **sizes)
    return Source(file=file, text=text, runs=tuple(runs))
