"""contrib/bench/compare.py: what decides, and what it compares with."""

import importlib
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "contrib/bench"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module("compare")


class Repository:
    """A git repository."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recorded = root / "recorded"
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        run = subprocess.run(["git", "-C", self.root, *arguments], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    def commit(self) -> str:
        """Returns its hash."""
        who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        self.git(*who, "commit", "--quiet", "--allow-empty", "-m", "a change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    # Not the user's settings, e.g. signatures of tags.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "repository"
    folder.mkdir()
    return Repository(folder)


@pytest.mark.parametrize(
    ("tree", "base", "median", "passed"),
    [
        ([10.0, 10.0, 10.0], [10.0, 10.0, 10.0], 1.0, True),
        # At the limit, and above it.
        ([12.5, 12.5, 12.5], [10.0, 10.0, 10.0], 1.25, True),
        ([12.6, 12.6, 12.6], [10.0, 10.0, 10.0], 1.26, False),
        # One disturbed round, and one in which the base was disturbed.
        ([10.0, 30.0, 10.0], [10.0, 10.0, 10.0], 1.0, True),
        ([13.0, 13.0, 13.0], [10.0, 40.0, 10.0], 1.3, False),
        # The machine becomes three times slower: both sides of a round are affected. The medians alone differ
        # by a factor of three.
        ([10.0, 30.0, 30.0], [10.0, 10.0, 30.0], 1.0, True),
        ([5.0], [10.0], 0.5, True),
    ],
)
def test_verdict(
    compare: ModuleType, tree: list[float], base: list[float], median: float, passed: bool
) -> None:
    """The median of the rounds' ratios decides."""
    verdict = compare.Verdict.of(tree, base)
    assert verdict.median == pytest.approx(median)
    assert verdict.passed is passed
    assert len(verdict.ratios) == len(tree)


@pytest.mark.parametrize(("tree", "base"), [([], []), ([10.0], [10.0, 11.0])])
def test_no_verdict_without_pairs(compare: ModuleType, tree: list[float], base: list[float]) -> None:
    """Rounds that only one side has are an error, and so is no round at all."""
    with pytest.raises(ValueError, match=r"rounds|zip"):
        compare.Verdict.of(tree, base)


def rows(**costs: list[float]) -> tuple[list[Namespace], dict[str, list[Namespace]]]:
    """Candidates and samples; `_base` at the end of a name stands for the base's suffix."""
    results = {
        name.replace("_base", " @base"): [Namespace(cpu_us=cost) for cost in of] for name, of in costs.items()
    }
    return [Namespace(name=name) for name in results], results


def test_report(compare: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Each way to run Ostler has to pass; the last line says what came of it."""
    found, results = rows(
        native=[10.0, 11.0], native_base=[10.0, 11.0], python=[20.0, 20.0], python_base=[10.0, 10.0]
    )
    assert compare.report(found, results, 2, " @base", "v1") is False
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["native", "python"]
    assert last == "FAILED: 1.00, 2.00 x the CPU time of v1 (limit 1.25)"
    assert compare.report(found[:2], results, 2, " @base", "v1") is True
    assert capsys.readouterr().out.splitlines()[-1].startswith("passed: 1.00 x")


def test_a_side_that_fails(compare: ModuleType) -> None:
    """A working tree that does not run fails the comparison; a base that does not run ends it."""
    found, results = rows(native=[10.0], native_base=[10.0, 11.0])
    with pytest.raises(importlib.import_module("servers").BenchError, match="native failed"):
        compare.report(found, results, 2, " @base", "v1")
    found, results = rows(native=[10.0, 11.0], native_base=[10.0])
    with pytest.raises(compare.NothingToCompareError, match="v1, does not run"):
        compare.report(found, results, 2, " @base", "v1")


def test_no_rows(compare: ModuleType) -> None:
    """`--only` may select nothing: that is no success."""
    with pytest.raises(importlib.import_module("servers").BenchError, match="no row"):
        compare.report([], {}, 2, " @base", "v1")


def test_the_newest_tag_is_the_base(compare: ModuleType, repository: Repository) -> None:
    """Tags before the recorded commit, and what the command line names before both."""
    first = repository.commit()
    repository.recorded.write_text(f"{first}\nWhy.\n")
    assert compare.find_base(repository.root, repository.recorded) == first
    for tag in ("v0.1", "v0.2"):
        repository.commit()
        repository.git("tag", tag)
    repository.commit()
    assert compare.find_base(repository.root, repository.recorded) == "v0.2"
    assert compare.find_base(repository.root, repository.recorded, "v0.1") == "v0.1"


def test_nothing_to_compare_with(compare: ModuleType, repository: Repository, tmp_path: Path) -> None:
    """Each reason is an error of one line."""

    def reason(root: Path = repository.root, wanted: str | None = None) -> str:
        with pytest.raises(compare.NothingToCompareError) as caught:
            compare.find_base(root, repository.recorded, wanted)
        return str(caught.value)

    repository.commit()
    assert reason() == "there is no tag and no recorded base commit"
    missing = "1" * 40
    repository.recorded.write_text(missing)
    assert reason() == f"the base commit {missing} is not in this clone"
    assert reason(wanted="v9") == "the base commit v9 is not in this clone"
    assert "\n" not in reason(tmp_path)
    inner = repository.root / "inner"
    inner.mkdir()
    assert reason(inner) == f"{inner} is no git checkout"


def test_the_base_is_exported(compare: ModuleType, repository: Repository, tmp_path: Path) -> None:
    """The package of the base's commit, and nothing of the working tree."""
    source = repository.root / "supervisor/ostler/__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("old")
    repository.git("add", "supervisor")
    base = repository.commit()
    source.write_text("new")
    compare.export(repository.root, base, tmp_path / "base")
    assert (tmp_path / "base/supervisor/ostler/__init__.py").read_text() == "old"


def test_the_recorded_base(compare: ModuleType) -> None:
    """The file begins with a full hash, which no later commit can make ambiguous."""
    first, *_ = compare.RECORDED.read_text().split()
    assert len(first) == 40
    assert int(first, 16)


def test_options(compare: ModuleType) -> None:
    """Varied traffic unless the command line says otherwise."""
    options = compare.parse_arguments([])
    assert (options.traffic, options.base, options.also) == ("varied", None, [])
    options = compare.parse_arguments(["--base", "v1", "--rounds", "3", "--traffic", "identical"])
    assert (options.base, options.rounds, options.traffic) == ("v1", 3, "identical")
    with pytest.raises(SystemExit):
        compare.parse_arguments(["--rounds", "0"])


def test_skipped_without_wrk(
    compare: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, and exit status 0."""
    monkeypatch.setattr("sys.argv", ["compare.py"])
    monkeypatch.setattr(importlib.import_module("servers"), "missing_command", lambda name: name == "wrk")
    assert compare.main() == 0
    assert capsys.readouterr().out == "compare.py: skipped, wrk is not installed (apt-get install wrk)\n"


@pytest.mark.parametrize(
    ("costs", "passed"),
    [
        ([(10.0, 10.0, 20.0)], True),
        # All rounds count: the second half makes the median of the ratios 1, or leaves it at 2.
        ([(20.0, 10.0, 20.0), (10.0, 10.0, 10.0)], True),
        ([(20.0, 10.0, 20.0), (20.0, 20.0, 20.0)], False),
    ],
)
def test_a_failure_is_measured_again(
    compare: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    costs: list[tuple[float, ...]],
    passed: bool,
) -> None:
    """Only if all rounds together are above the limit does the comparison fail."""
    name = "ostler sync Python only"
    runs = iter(costs)

    def interleaved(*_: object) -> dict[str, list[Namespace]]:
        return {name: samples(next(runs)), f"{name} @base": samples((10.0, 10.0, 10.0))}

    def samples(of: tuple[float, ...]) -> list[Namespace]:
        return [Namespace(cpu_us=cost) for cost in of]

    (tmp_path / "base" / "supervisor" / "ostler").mkdir(parents=True)
    monkeypatch.setattr(compare, "find_base", lambda *_: "v1")
    monkeypatch.setattr(compare, "export", lambda *_: None)
    monkeypatch.setattr(compare, "build", lambda *_: None)
    monkeypatch.setattr(compare, "asdict", vars)
    monkeypatch.setattr(importlib.import_module("drive"), "interleaved", interleaved)
    assert compare.compare(compare.parse_arguments(["--rounds", "3"]), tmp_path) is passed
    assert next(runs, None) is None
