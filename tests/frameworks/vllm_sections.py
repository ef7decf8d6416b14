"""What vLLM's own classes take in the JSON values that rules know: runs in vLLM's environment, writes JSON."""

import dataclasses
import json
import sys

from tests.frameworks import vllm_platform


def sections() -> dict[str, list[str]]:
    """Return the keys of each class, and the connectors that are registered."""
    from vllm.config import KVTransferConfig, SpeculativeConfig  # noqa: PLC0415 - after what it lacks is stood in for
    from vllm.config.parallel import EPLBConfig  # noqa: PLC0415 - likewise
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory  # noqa: PLC0415 - likewise

    classes = {
        "eplb_config": EPLBConfig,
        "kv_transfer_config": KVTransferConfig,
        "speculative_config": SpeculativeConfig,
    }
    keys = {
        name: sorted(field.name for field in dataclasses.fields(one) if field.init) for name, one in classes.items()
    }
    return {**keys, "connectors": sorted(KVConnectorFactory._registry)}


if __name__ == "__main__":
    vllm_platform.quiet()
    vllm_platform.stand_in_for_kernels()
    vllm_platform.claim(vllm_platform.H100)
    sys.stdout.write(json.dumps(sections()))
