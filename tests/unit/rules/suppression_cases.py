"""For each rule about comments that hide findings a script that breaks it and nothing else."""

from collections.abc import Mapping

from tests.unit.rules.megatron_cases import script

CASES: Mapping[str, str] = {
    "SUP001": script() + "# shardwright: ignore[MLM101]\n",
    "SUP002": script() + "# shardwright: ignore-file[MLM999] it was renamed\n",
    "SUP003": script() + "# shardwright: ignore-file[MLM101] the last node is broken\n",
}
