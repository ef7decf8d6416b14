"""Prints what DeepSpeed's launcher makes of a hostfile and of the words of its command; runs beside DeepSpeed."""

import json
import sys

from deepspeed.launcher.runner import fetch_hostfile, parse_args, parse_inclusion_exclusion


def main() -> None:
    """Read the words of a `deepspeed` command, and print what they say."""
    arguments = parse_args(json.load(sys.stdin))
    pool = fetch_hostfile(arguments.hostfile)
    active = parse_inclusion_exclusion(pool, arguments.include, arguments.exclude)
    print(  # noqa: T201 - how it answers
        json.dumps(
            {
                "hosts": [[host, len(slots)] for host, slots in active.items()],
                "program": arguments.user_script,
                "arguments": arguments.user_args,
                "no_local_rank": arguments.no_local_rank,
            }
        )
    )


if __name__ == "__main__":
    main()
