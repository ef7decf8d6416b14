"""DeepSpeed: keys that its JSON does not have, and values of the wrong kind.

The mistakes come from `planner.readers.deepspeed_keys`; here each kind has its rule, so that it can be looked up and
suppressed by itself.
"""

import json
from collections.abc import Iterator
from functools import lru_cache

from planner.readers.deepspeed_keys import KeyMistake, KeyMistakeKind, key_mistakes
from planner.readers.deepspeed_run import DeepSpeedRun
from planner.readers.flag_tables import Framework
from planner.rules.rule import Fix, Found, FoundAt, Rule, Severity, rule

CONFIG = "deepspeed/runtime/config.py: DeepSpeedConfig"
MODELS = "deepspeed/runtime/config_utils.py: DeepSpeedConfigModel"


def _found(run: DeepSpeedRun, kind: KeyMistakeKind) -> Iterator[Found]:
    for mistake in _mistakes(run):
        if mistake.kind is kind:
            yield Found(place=mistake.location, message=f"{mistake.message}.", hint=mistake.hint, fix=_renamed(mistake))


@lru_cache(maxsize=1)
def _mistakes(run: DeepSpeedRun) -> tuple[KeyMistake, ...]:
    """Return the mistakes of a run, which every rule here asks for."""
    return tuple(key_mistakes(run))


def _renamed(mistake: KeyMistake) -> Fix | None:
    """Return the change of a key that has one near name; it stands in quotes as it is written."""
    if mistake.kind not in {KeyMistakeKind.MISSPELT, KeyMistakeKind.REFUSED} or len(mistake.nearest) != 1:
        return None
    return Fix(location=mistake.location, old=json.dumps(mistake.key), new=json.dumps(mistake.nearest[0]))


@rule(
    id="S031",
    name="misspelt-key",
    framework=Framework.DEEPSPEED,
    prevents="a setting that is ignored without a word",
    found_at=FoundAt.NEVER,
    source=CONFIG,
)
def misspelt_key(run: DeepSpeedRun) -> Iterator[Found]:
    """A key that DeepSpeed does not have, near to one that it has, or in the wrong section.

    DeepSpeed reads the keys that it knows and says nothing of others: at the top, and in sections without a model of
    their own. `"zero_optimisation": {"stage": 3}` trains without ZeRO.
    """
    yield from _found(run, KeyMistakeKind.MISSPELT)


@rule(
    id="S032",
    name="ignored-key",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="a setting that is ignored without a word",
    found_at=FoundAt.NEVER,
    source=CONFIG,
)
def ignored_key(run: DeepSpeedRun) -> Iterator[Found]:
    """A key that DeepSpeed does not have, and near to none.

    It may be meant for the training program, which is handed the same file; DeepSpeed itself does not look at it.
    """
    yield from _found(run, KeyMistakeKind.IGNORED)


@rule(
    id="S033",
    name="refused-key",
    framework=Framework.DEEPSPEED,
    prevents="ValidationError: ... Extra inputs are not permitted",
    found_at=FoundAt.PARSE,
    source=MODELS,
)
def refused_key(run: DeepSpeedRun) -> Iterator[Found]:
    """A key that its section does not have, in a section that refuses unknown ones."""
    yield from _found(run, KeyMistakeKind.REFUSED)


@rule(
    id="S034",
    name="removed-key",
    framework=Framework.DEEPSPEED,
    prevents="DeepSpeedConfigError: ... has been removed",
    found_at=FoundAt.PARSE,
    source="deepspeed/runtime/config.py: _reject_removed_config_keys",
)
def removed_key(run: DeepSpeedRun) -> Iterator[Found]:
    """A key of an earlier version that DeepSpeed now refuses by name."""
    yield from _found(run, KeyMistakeKind.REMOVED)


@rule(
    id="S035",
    name="wrong-kind-of-value",
    framework=Framework.DEEPSPEED,
    prevents="ValidationError: ... Input should be ...; or an error on a value that is no section",
    found_at=FoundAt.PARSE,
    source=MODELS,
)
def wrong_kind(run: DeepSpeedRun) -> Iterator[Found]:
    """A value of a kind that its key does not take, where DeepSpeed checks it.

    Numbers may be texts and truth values may be 0 and 1, but `"5e8"` in quotes is no whole number, and null is none.
    """
    yield from _found(run, KeyMistakeKind.WRONG_KIND)


@rule(
    id="S036",
    name="unchecked-kind-of-value",
    framework=Framework.DEEPSPEED,
    prevents="TypeError where the value is first used; or a text that counts as true",
    found_at=FoundAt.LATER,
    source=CONFIG,
)
def unchecked_kind(run: DeepSpeedRun) -> Iterator[Found]:
    """A value of the wrong kind where DeepSpeed takes anything.

    At the top and in old sections a value is taken as it stands: `"false"` in quotes counts as true, and a batch size
    in quotes fails when it is first compared.
    """
    yield from _found(run, KeyMistakeKind.UNCHECKED_KIND)


@rule(
    id="S037",
    name="out-of-bounds",
    framework=Framework.DEEPSPEED,
    prevents="ValidationError: ... Input should be greater than ...",
    found_at=FoundAt.PARSE,
    source=MODELS,
)
def out_of_bounds(run: DeepSpeedRun) -> Iterator[Found]:
    """A number outside of what its key takes."""
    yield from _found(run, KeyMistakeKind.OUT_OF_BOUNDS)


@rule(
    id="S038",
    name="no-choice-of-key",
    framework=Framework.DEEPSPEED,
    prevents="ValidationError: ... Input should be ...; ValueError: Invalid ...",
    found_at=FoundAt.PARSE,
    source=MODELS,
)
def no_choice(run: DeepSpeedRun) -> Iterator[Found]:
    """A word or number that is none of those that its key takes."""
    yield from _found(run, KeyMistakeKind.NO_CHOICE)


@rule(
    id="S039",
    name="deprecated-key",
    framework=Framework.DEEPSPEED,
    severity=Severity.WARNING,
    prevents="Config parameter ... is deprecated use ... instead",
    found_at=FoundAt.PARSE,
    source="deepspeed/runtime/config_utils.py: DeepSpeedConfigModel._process_deprecated_field",
)
def deprecated_key(run: DeepSpeedRun) -> Iterator[Found]:
    """A key that still works under its old name, and is going away."""
    yield from _found(run, KeyMistakeKind.DEPRECATED)


@rule(
    id="S040",
    name="setting-twice",
    framework=Framework.DEEPSPEED,
    prevents="ValidationError: ... Extra inputs are not permitted; "
    "AssertionError: Cannot provide deprecated parameter ...",
    found_at=FoundAt.PARSE,
    source=MODELS,
)
def setting_twice(run: DeepSpeedRun) -> Iterator[Found]:
    """One setting under two of its names, as `prefetch_bucket_size` beside `stage3_prefetch_bucket_size`."""
    yield from _found(run, KeyMistakeKind.TWICE)


@rule(
    id="S041",
    name="auto-without-trainer",
    framework=Framework.DEEPSPEED,
    severity=Severity.NOTE,
    prevents="the default in the place of a value that was to be worked out; at the top a TypeError",
    found_at=FoundAt.NEVER,
    source="deepspeed/runtime/config_utils.py: DeepSpeedConfigModel.__init__",
)
def auto_without_trainer(run: DeepSpeedRun) -> Iterator[Found]:
    """The word "auto" where nothing completes it.

    Hugging Face's Trainer puts numbers in the place of "auto" (`--deepspeed FILE`). A program that hands the file to
    DeepSpeed itself (`--deepspeed_config FILE`) gets the default in sections, and an error at the top.
    """
    if run.launch is not None and not run.launch.trainer:
        yield from _found(run, KeyMistakeKind.AUTO)


RULES: tuple[Rule[DeepSpeedRun], ...] = (
    misspelt_key,
    ignored_key,
    refused_key,
    removed_key,
    wrong_kind,
    unchecked_kind,
    out_of_bounds,
    no_choice,
    deprecated_key,
    setting_twice,
    auto_without_trainer,
)
