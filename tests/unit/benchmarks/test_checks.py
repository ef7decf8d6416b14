"""The script of all checks: targets, verdicts, what is not at hand, and that everything it names is there."""

import ast
import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.checks import running
from benchmarks.checks.__main__ import chosen, known_names, main
from benchmarks.checks.catalogue import CHECKS
from benchmarks.checks.check import (
    FOLDER,
    MEASUREMENTS,
    NOT_LONG,
    ROOT,
    Answer,
    ByHand,
    Check,
    Command,
    Measure,
    Need,
    Suite,
)
from benchmarks.checks.fresh_copy import copy_to
from benchmarks.checks.running import (
    Counts,
    Ran,
    Row,
    Settings,
    counts_of,
    judged,
    rows_of,
    words_of_tests,
)
from benchmarks.checks.table import Table, document_of, listed, summary_lines
from benchmarks.checks.targets import Target, Verdict, above, at_least, at_most, between, exactly
from benchmarks.instances import instances

MET, MISSED, NOT_RUN = Verdict.MET, Verdict.MISSED, Verdict.NOT_RUN
FLOATS = st.floats(min_value=-1e9, max_value=1e9)


@pytest.mark.parametrize(
    ("target", "text", "kept", "missed"),
    [
        (at_most(6.5, "%"), "<= 6.5 %", (-1.0, 6.5), (6.5000001, math.nan, math.inf)),
        (at_least(0.93), ">= 0.93", (0.93, 7.0), (0.9299999, math.nan, -math.inf)),
        (above(0, "GiB"), "> 0 GiB", (1e-9,), (0.0, -1.0, math.nan)),
        (exactly(3), "= 3", (3,), (2, 4, math.nan)),
        (between(0.3, 0.6), "0.3 to 0.6", (0.3, 0.45, 0.6), (0.2999, 0.6001)),
        (at_least(0.17, "tokens/s", decimals=2), ">= 0.17 tokens/s", (0.165001, 0.17), (0.1649, math.nan)),
        (at_most(1, decimals=9), "<= 1", (1 + 1e-12,), (1 + 1e-8,)),
    ],
)
def test_a_target_is_kept_on_its_side_alone(
    target: Target, text: str, kept: tuple[float, ...], missed: tuple[float, ...]
) -> None:
    assert target.text == text
    assert [figure for figure in kept if not target.holds(figure)] == []
    assert [figure for figure in missed if target.holds(figure)] == []


def test_a_target_has_an_end() -> None:
    with pytest.raises(ValueError, match="kept by any figure"):
        Target(unit="s")


@given(low=FLOATS, figure=FLOATS, is_upper=st.booleans(), near=st.booleans())
def test_a_figure_in_words_is_on_the_same_side_of_its_target(
    *, low: float, figure: float, is_upper: bool, near: bool
) -> None:
    target = at_most(low) if is_upper else at_least(low)
    value = math.nextafter(low, figure) if near else figure
    assert target.holds(float(target.said(value))) == target.holds(value)


def test_a_figure_has_as_many_digits_as_tell_it_from_its_target() -> None:
    assert at_most(6.5, "%").said(6.123456) == "6.123 %"
    assert at_most(6.5, "%").said(6.50004) == "6.50004 %"
    assert exactly(100_000).said(100_000) == "100000"
    assert at_most(1).said(math.nan) == "nan"


def printing(text: str, *measures: Measure, exits: tuple[int, ...] = (0,), end: str = "") -> Check:
    """Return a check of a command that prints a text."""
    words = ("-c", f"import sys; print({text!r}); {end}")
    return Check(area="area", name="name", about="it prints", run=Command(words=words, measures=measures, exits=exits))


def value(name: str, target: Target, key: str) -> Measure:
    return Measure(name=name, target=target, read=lambda answer: answer.document[key])


def ran(check: Check, tmp_path: Path) -> tuple[Row, ...]:
    return rows_of(check, Settings(logs=tmp_path))


def test_a_figure_beside_its_target_is_met_or_missed(tmp_path: Path) -> None:
    check = printing(
        '{"a": 5, "b": 5, "c": null}',
        value("low enough", at_most(6, "%"), "a"),
        value("too low", at_least(6, "%"), "b"),
        value("without", at_least(6, "%"), "c"),
        value("absent", at_least(6, "%"), "d"),
        Measure(name="time", target=above(0, "s"), read=lambda answer: answer.seconds),
    )
    rows = ran(check, tmp_path)
    assert [row.verdict for row in rows] == [MET, MISSED, MISSED, MISSED, MET]
    assert [row.said for row in rows[:4]] == ["5 %", "5 %", "-", "-"]
    assert [row.reason for row in rows] == [
        "",
        "",
        "it says no figure",
        "its output is not what it should be: KeyError: 'd'",
        "",
    ]
    assert all(row.loop_seconds is not None and row.loop_seconds > 0 for row in rows)
    assert (tmp_path / "area.name.out").read_text().strip() == '{"a": 5, "b": 5, "c": null}'


def test_a_command_that_ends_badly_is_missed_and_says_so(tmp_path: Path) -> None:
    measure = value("figure", at_most(6), "a")
    failing = printing('{"a": 5}', measure, end="sys.exit('no such file')")
    (row,) = ran(failing, tmp_path)
    assert (row.verdict, row.figure, row.reason) == (MISSED, None, "exit code 1: no such file")
    (taken,) = ran(printing('{"a": 5}', measure, exits=(0, 1), end="sys.exit(1)"), tmp_path)
    assert taken.verdict is MET
    (silent,) = ran(printing("no document", measure), tmp_path)
    assert (silent.verdict, silent.reason.split(":")[:2]) == (
        MISSED,
        ["its output is not what it should be", " JSONDecodeError"],
    )


def test_what_comes_before_has_the_same_folder_and_must_go_well(tmp_path: Path) -> None:
    write = ("-c", f"open('{FOLDER}/figure', 'w').write('5')")
    read = ("-c", f"print('{{\"a\":', open('{FOLDER}/figure').read(), '}}')")
    command = Command(before=write, words=read, measures=(value("figure", exactly(5), "a"),))
    check = Check(area="area", name="name", about="it reads", run=command)
    assert [row.verdict for row in ran(check, tmp_path)] == [MET]
    worse = replace(check, run=replace(command, before=("-c", "raise SystemExit(7)")))
    assert [(row.verdict, row.reason) for row in ran(worse, tmp_path)] == [(MISSED, "exit code 7")]


def of_file(name: str) -> Check:
    words = ("-c", "import sys; print(open(sys.argv[1]).read())", f"{MEASUREMENTS}/{name}")
    return Check(area="area", name="file", about="", run=Command(words=words, measures=(value("a", exactly(5), "a"),)))


def test_without_its_measurements_a_check_is_not_run(tmp_path: Path) -> None:
    check, data = of_file("training/runs.csv"), tmp_path / "data"
    (row,) = ran(check, tmp_path)
    assert (row.verdict, row.seconds) == (NOT_RUN, None)
    assert row.reason == "needs training/runs.csv: say where with --measurements"
    data.mkdir()
    (row,) = rows_of(check, Settings(logs=tmp_path, measurements=data))
    assert (row.verdict, row.reason) == (NOT_RUN, f"{data} has no training/runs.csv")
    (data / "training").mkdir()
    (data / "training" / "runs.csv").write_text('{"a": 5}')
    (row,) = rows_of(check, Settings(logs=tmp_path, measurements=data))
    assert row.verdict is MET


@pytest.mark.parametrize("run", [Suite(nodes=("tests",)), Command(words=(), measures=(value("a", exactly(5), "a"),))])
def test_without_a_gpu_a_check_is_not_run(
    run: Suite | Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    never: dict[Need, Callable[[], bool]] = {need: lambda: False for need in Need}
    monkeypatch.setattr(running, "AT_HAND", never)
    check = Check(area="area", name="name", about="", run=replace(run, needs=(Need.GPU, Need.GIT)))
    assert [(row.verdict, row.reason) for row in ran(check, tmp_path)] == [
        (NOT_RUN, "needs a GPU and a git checkout"),
    ]


def test_every_need_can_be_looked_for() -> None:
    assert set(running.AT_HAND) == set(Need)


def test_what_nothing_can_run_is_not_run(tmp_path: Path) -> None:
    run = ByHand(wanted=(("error", at_most(8, "%")),), reason="needs hands")
    (row,) = ran(Check(area="area", name="name", about="", run=run), tmp_path)
    assert (row.measure, row.target, row.verdict, row.reason) == ("error", "<= 8 %", NOT_RUN, "needs hands")


def suite_of(body: str, tmp_path: Path) -> Check:
    file = tmp_path / "test_it.py"
    file.write_text(f"import pytest\n{body}", encoding="utf-8")
    return Check(area="area", name="tests", about="", run=Suite(nodes=(str(file),)))


PASSING = "def test_good(): pass\n"


@pytest.mark.parametrize(
    ("body", "verdict", "said", "reason"),
    [
        (PASSING, MET, "1 passed", ""),
        (f"{PASSING}def test_bad(): assert 0\n", MISSED, "1 passed, 1 failed", "test_it::test_bad"),
        (f"{PASSING}def test_not(): pytest.skip('no vLLM')\n", NOT_RUN, "1 passed, 1 skipped", "no vLLM"),
        ("", MISSED, "-", "exit code 5"),
        ("import no_such_module", MISSED, "1 failed", "test_it"),
    ],
)
def test_tests_are_counted_and_a_skipped_one_is_never_met(
    body: str, verdict: Verdict, said: str, reason: str, tmp_path: Path
) -> None:
    (row,) = ran(suite_of(body, tmp_path), tmp_path)
    assert (row.verdict, row.said) == (verdict, said)
    assert reason in row.reason
    assert bool(row.reason) == bool(reason)


def test_a_report_is_read_case_by_case() -> None:
    report = (
        '<testsuites><testsuite><testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two">'
        '<failure message="x"/></testcase><testcase classname="tests.a" name="three"><error message="y"/></testcase>'
        '<testcase classname="tests.a" name="four"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    counts = counts_of(report)
    assert counts == Counts(passed=1, failed=("tests.a::two", "tests.a::three"), skipped=("no GPU",))
    assert counts.text == "1 passed, 2 failed, 1 skipped"


@pytest.mark.parametrize(
    ("counts", "exit_code", "verdict", "reason"),
    [
        (Counts(passed=2, failed=(), skipped=()), 0, MET, ""),
        (Counts(passed=2, failed=(), skipped=()), 2, MISSED, "exit code 2: last"),
        (Counts(passed=0, failed=(), skipped=()), 0, MISSED, "exit code 0: last"),
        (Counts(passed=0, failed=("a", "b", "c", "d"), skipped=("x",)), 1, MISSED, "a; b; c; and 1 more"),
        (Counts(passed=9, failed=(), skipped=("x", "y", "x")), 0, NOT_RUN, "x; y"),
        (None, 4, MISSED, "no test was run; exit code 4: last"),
    ],
)
def test_tests_are_met_only_where_all_passed(
    counts: Counts | None, exit_code: int, verdict: Verdict, reason: str
) -> None:
    done = Ran(exit_code=exit_code, output="", errors="first\nlast\n", seconds=1.0, loop_seconds=0.1)
    assert judged(counts, done) == (verdict, reason)


def test_only_tests_of_several_files_are_dealt_out(tmp_path: Path) -> None:
    one = Suite(nodes=("tests/laws/test_plan_fuzz.py",))
    several = Suite(nodes=("tests/laws/test_plan_fuzz.py", "tests/laws/test_input_fuzz.py"), marker="long")
    report = tmp_path / "report.xml"
    assert words_of_tests(one, report=report, workers=2)[4:] == ("-m", NOT_LONG, *one.nodes)
    assert words_of_tests(several, report=report, workers=2)[4:] == (
        *("-m", "long", "-n", "2", "--dist", "loadfile"),
        *several.nodes,
    )
    assert words_of_tests(several, report=report, workers=1)[4:] == ("-m", "long", *several.nodes)
    assert "-n" in words_of_tests(Suite(nodes=("tests/corpora",)), report=report, workers=2)


def rows_to_print() -> tuple[Check, tuple[Row, ...]]:
    words = ("-m", "benchmarks.near")
    run = Command(words=words, measures=(value("error", at_most(6.5, "%"), "a"), value("gap", exactly(0), "b")))
    check = Check(area="area", name="name", about="it is near", run=run)
    row = Row(
        check="area.name",
        measure="error",
        target="<= 6.5 %",
        figure=6.1,
        said="6.1 %",
        verdict=MET,
        seconds=12.34,
        loop_seconds=0.25,
    )
    return check, (row, replace(row, measure="gap", target="= 0", figure=None, said="-", verdict=MISSED, reason="why"))


def test_the_table_reads_like_this() -> None:
    check, rows = rows_to_print()
    table = Table((check,))
    lines = [table.header, *table.lines_of(rows), *summary_lines(rows)]
    assert lines == [
        "check      measure  target    figure            verdict   seconds   loop",
        "area.name  error    <= 6.5 %  6.1 %             met          12.3   0.25",
        "area.name  gap      = 0       -                 missed       12.3   0.25",
        "    why",
        "",
        "1 met, 1 missed, 0 not run, of 2",
        "seconds: wall time of a run; loop: of 2,000,000 additions of Python just before it, 0.25 to 0.25 s here",
    ]


def test_a_reason_of_several_rows_is_printed_once() -> None:
    check, (_, row) = rows_to_print()
    lines = Table((check,)).lines_of((row, row, replace(row, reason="another")))
    assert [line.strip() for line in lines if line.startswith(" ")] == ["why", "another"]


def test_the_document_holds_every_row() -> None:
    _, rows = rows_to_print()
    document = json.loads(json.dumps(document_of(rows)))
    assert document["summary"] == {"rows": 2, "met": 1, "missed": 1, "not run": 0}
    assert [(row["figure"], row["verdict"], row["loop_seconds"]) for row in document["rows"]] == [
        (6.1, "met", 0.25),
        (None, "missed", 0.25),
    ]


def test_the_list_says_what_is_wanted_and_how_it_is_run() -> None:
    check, _ = rows_to_print()
    tests = Check(area="area", name="tests", about="they hold", run=Suite(nodes=("tests/a.py",), marker="long"))
    assert listed((check, tests)) == (
        *("area.name", "    it is near", "    error: <= 6.5 %", "    gap: = 0", "    python -m benchmarks.near"),
        *("area.tests", "    they hold", "    tests: all pass", "    pytest -m 'long' tests/a.py"),
    )


def test_checks_are_chosen_by_area_and_name_in_the_order_of_the_list() -> None:
    names = [check.full_name for check in chosen(["offload", "planning.405b-on-8-gpus"])]
    assert names[0] == "planning.405b-on-8-gpus"
    assert len(names) > 1
    assert all(name.startswith("offload.") for name in names[1:])
    assert chosen(None) == CHECKS
    assert len(set(known_names())) == len(known_names())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nothing"], "--only nothing: neither an area nor a check; --list names them all"),
        (["--measurements", "/no/such/folder"], "--measurements /no/such/folder: no such folder"),
        (["--workers", "0"], "--workers 0: at least 1"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_the_exit_code_is_1_where_a_target_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    good, bad = (printing('{"a": 5}', value("a", exactly(number), "a")) for number in (5, 6))
    for check, code, verdict in ((good, 0, "met"), (bad, 1, "missed"), (of_file("absent.csv"), 0, "not run")):
        monkeypatch.setattr("benchmarks.checks.__main__.CHECKS", (check,))
        assert main(["--format", "json"]) == code
        assert [row["verdict"] for row in json.loads(capsys.readouterr().out)["rows"]] == [verdict]
        assert main(["--out", str(tmp_path / "logs")]) == code
        assert verdict in capsys.readouterr().out.splitlines()[1]
    assert (tmp_path / "logs" / "area.name.out").is_file()


def test_everything_is_listed_without_being_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [check.full_name for check in CHECKS]


def test_a_copy_has_the_files_that_git_has_and_no_others(tmp_path: Path) -> None:
    if not running.is_git_checkout():
        pytest.skip("this is no git checkout")
    copy_to(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    assert (tmp_path / ".ci" / "readme_command.py").is_file()
    assert not (tmp_path / ".git").exists()
    assert not list(tmp_path.rglob("__pycache__"))


COMMANDS = {check.full_name: check.run for check in CHECKS if isinstance(check.run, Command)}
OF_SUITE = {check.full_name: check.run for check in CHECKS if isinstance(check.run, Suite)}


def functions_in(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", OF_SUITE)
def test_every_test_that_is_named_is_there(name: str) -> None:
    run = OF_SUITE[name]
    assert run.nodes
    for node in run.nodes:
        file, _, test = node.partition("::")
        assert (ROOT / file).exists(), file
        assert not test or test in functions_in(ROOT / file), node


@pytest.mark.parametrize("name", OF_SUITE)
def test_tests_of_frameworks_and_no_others_are_marked_so(name: str) -> None:
    run = OF_SUITE[name]
    files = [ROOT / node.partition("::")[0] for node in run.nodes]
    of_frameworks = ["pytestmark = pytest.mark.frameworks" in file.read_text() for file in files if file.is_file()]
    assert all(of_frameworks) if run.marker == "frameworks" else not any(of_frameworks)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_module_and_file_that_is_called_is_there(name: str) -> None:
    for words in filter(None, (COMMANDS[name].before, COMMANDS[name].words)):
        assert words[0] == "-m"
        assert find_spec(words[1]) is not None
        missing = [word for word in words if word.endswith(".yaml") and not (ROOT / word).is_file()]
        assert missing == []


def test_every_instance_with_a_wanted_time_is_solved() -> None:
    wanted = {instance.name for instance in instances() if instance.wanted is not None}
    assert {f"search.{name}" for name in wanted} <= set(COMMANDS)


def test_measures_of_a_check_have_names_of_their_own() -> None:
    names = [(check.full_name, measure) for check in CHECKS for measure, _ in check.wanted]
    assert len(set(names)) == len(names)
    assert {check.full_name for check in CHECKS} == {name for name, _ in names}


FROM_ELSEWHERE = {
    "search.llama-3.1-70b-8xdgx-h100": ("<= 1 s", "<= 0 %", "<= 1 GB", "= 0", "= 0"),
    "search.llama-3.1-405b-16384xh100": ("<= 5 s", "<= 0 %", "<= 1 GB", "= 0", "= 0"),
    "search.deepseek-v3-2048xh100": ("<= 10 s", "<= 0.5 %", "<= 1 GB", "= 0", "= 0"),
    "search.kimi-k2-131072xh100": ("<= 60 s", "<= 0 %", "<= 1 GB", "= 0", "= 0"),
    "validation.damaged-files-time": ("= 5000", "<= 1 s"),
    "validation.hostile-inputs": ("= 10000", "= 0"),
    "serving.llama-3.1-8b-8xh100": ("<= 3 s", "<= 1"),
    "serving.trace": ("= 100000", "<= 20 s"),
    "experts.placement-58x256-32": ("= 8", "<= 1", "<= 1.05", "= 0", "<= 5 s"),
    "experts.placement-58x256-64": ("= 8", "<= 1", "<= 1.55", "= 0", "<= 5 s"),
    "offload.flexgen-opt-30b": (">= 7.09 tokens/s",),
    "offload.flexgen-opt-175b": (">= 0.17 tokens/s",),
    "offload.flexgen-opt-66b": (">= 3.65 tokens/s",),
}
"""Targets that benchmarks state, as they were set: none is loosened there unseen."""


@pytest.mark.parametrize("name", FROM_ELSEWHERE)
def test_targets_of_benchmarks_are_those_that_were_set(name: str) -> None:
    (check,) = chosen([name])
    assert tuple(target for _, target in check.wanted) == FROM_ELSEWHERE[name]


def answer_of(document: object, measurements: Path | None = None) -> Answer:
    return Answer(exit_code=0, output=json.dumps(document), seconds=1.0, measurements=measurements)


def figures(name: str, answer: Answer) -> dict[str, float | None]:
    """Return what a check's measures read of an answer."""
    (check,) = chosen([name])
    assert isinstance(check.run, Command)
    return {measure.name: measure.read(answer) for measure in check.run.measures}


def test_a_plan_is_read_by_its_domain_and_its_limit() -> None:
    best = {"layout": {"tp": 4}, "peak_memory_bytes": 90, "memory_limit_bytes": 100, "mfu": 0.4}
    levels = [{"kind": "peer", "num_gpus": 8}, {"kind": "network", "num_gpus": 64}]
    document = {"inputs": {"cluster": {"levels": levels}}, "plans": [best]}
    found = figures("planning.8b-on-8-h100", answer_of(document))
    assert tuple(found.values()) == (1.0, 0.5, 0.9, 0.4)
    levels[0]["kind"] = "host"
    assert figures("planning.7b-on-4-l40s", answer_of(document))["tp over the NVLink domain"] == 4.0


def test_kernels_of_a_format_are_told_by_the_rows_of_their_file(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    lines = ("system,dtype", "h100,bfloat16", "h100,fp8", "h100,fp8_block", "h100,fp8", "h100,int8_wo", "h100,bfloat16")
    (tmp_path / "kernels" / "gemm.csv").write_text("\n".join(lines))
    predicted = (1.01, 1.02, 0.9, 1.05, 3.0, None)
    document = {"rows": [{"measured_us": 1.0, "predicted_us": value} for value in predicted]}
    found = figures("accuracy.products-left-out", answer_of(document, tmp_path))
    assert found == {"bf16, median error": pytest.approx(1.0), "fp8, median error": pytest.approx(5.0)}
    del document["rows"][0]
    with pytest.raises(ValueError, match="shorter"):
        figures("accuracy.products-left-out", answer_of(document, tmp_path))


def test_rows_of_mlperf_do_not_count_for_coverage(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "serving_measurements.csv").write_text("mode\nagg\nMLPerf Offline\nstatic batch\nagg\nagg")
    document = {"rows": [{"error": error} for error in (None, "no lengths", None, "no layout", None)]}
    (check,) = chosen(["serving.accuracy"])
    assert isinstance(check.run, Command)
    (measure,) = (one for one in check.run.measures if one.name == "coverage without MLPerf")
    assert measure.read(answer_of(document, tmp_path)) == 75.0


def test_offload_is_met_by_a_plan_that_fits_or_by_what_is_missing() -> None:
    name = "offload.70b-on-8x40gb-512gb-deepspeed"
    best = {"layout": {"offload": {}}, "peak_memory_bytes": 100, "memory_limit_bytes": 100}
    too_large, resident = best | {"peak_memory_bytes": 101}, best | {"layout": {"offload": None}}
    for plan, expected in ((best, 1.0), (too_large, 0.0), (resident, 0.0)):
        assert list(figures(name, answer_of({"plans": [plan]})).values()) == [expected]
    for shortfall, expected in ((1, 1.0), (0, 0.0)):
        infeasible = {"shortfall_bytes": shortfall, "binding": "host memory"}
        assert list(figures(name, answer_of({"plans": [], "infeasible": infeasible})).values()) == [expected]


def test_a_placement_is_as_bad_as_its_worst_case() -> None:
    row = {"distribution": "zipf:1.0", "keep_groups": False, "load": 1.0, "greedy_load": 1.1, "sends": 1.0}
    row |= {"greedy_sends": 2.0, "twice": 0, "cpu_seconds": 1.0}
    worse = row | {"keep_groups": True, "load": 1.2, "greedy_load": 1.0, "twice": 2, "cpu_seconds": 6.0}
    found = figures("experts.placement-58x256-32", answer_of([row, worse]))
    assert tuple(found.values()) == (2, 1.2, 1.0, 2, 6.0)
