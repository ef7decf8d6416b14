"""A file with the runs that it starts, and what the user says beside the files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

from planner.errors import Location
from planner.readers.arguments import Arguments
from planner.readers.flag_tables import Framework, chosen_version

if TYPE_CHECKING:
    from planner.readers.deepspeed_launch import DeepSpeedLaunch
    from planner.rules.own_files import OwnKind


class Sizes(TypedDict):
    """What every reader is told of the machine."""

    num_gpus: int | None
    gpus_per_node: int | None


class Run(Protocol):
    """A run that a file starts."""

    @property
    def framework(self) -> Framework:
        """Return whose run it is."""

    @property
    def version(self) -> str:
        """Return the version that it is judged for."""

    @property
    def arguments(self) -> Arguments | None:
        """Return the words of its command, if it is a command."""

    @property
    def start(self) -> Location:
        """Return where it is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user says beside the files.

    Args:
        versions: The version of a framework that a file is judged for; the newest known where it is not named.
        num_gpus: GPUs of the run, where a file leaves it open.
        gpus_per_node: GPUs of a node, likewise.
        skip_unknown: Files that were named themselves are passed over like those of folders.
    """

    versions: Mapping[Framework, str]
    num_gpus: int | None = None
    gpus_per_node: int | None = None
    skip_unknown: bool = False

    def version(self, framework: Framework) -> str:
        """Return the version of a framework that files are judged for."""
        return chosen_version(framework, self.versions.get(framework))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file with what it starts.

    Args:
        file: What messages call it.
        text: Its text.
        runs: What it starts.
        launches: Commands with a DeepSpeed configuration, which is a file of its own and holds the run.
        own: Which file of ours it is, if it is one.
    """

    file: str
    text: str
    runs: tuple[Run, ...]
    launches: "tuple[DeepSpeedLaunch, ...]" = ()
    own: "OwnKind | None" = None
