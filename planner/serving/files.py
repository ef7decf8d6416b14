"""The files that start a serving layout, checked before they are written and read back after."""

from collections.abc import Mapping

from planner.emit.vllm import VERSION, config_name, emit_vllm
from planner.errors import BrokenPromiseError
from planner.readers.vllm_engine import settings_of, shape_of
from planner.readers.vllm_run import read_vllm_config
from planner.serving_plans.layout import ServingLayout, check_layout


def serving_files(layout: ServingLayout) -> Mapping[str, str]:
    """Return the text of every file that starts a layout, by name.

    Raises:
        InputError: The pools cannot work together, or do not fit their nodes.
        BrokenPromiseError: A file says another engine than the layout.
    """
    check_layout(layout)
    files = emit_vllm(layout)
    for pool in layout.pools:
        name = config_name(pool)
        run = read_vllm_config(files[name], file=name, version=VERSION, num_gpus=None, gpus_per_node=pool.gpus_per_node)
        said = (run.model_name, shape_of(run), settings_of(run))
        if said != (layout.model, pool.shape, pool.settings):
            raise BrokenPromiseError(f"{name} says {said}, the plan {pool}")
    return files
