"""The whole measurement: what fails stops nothing, what is fresh is not run again, the page shows what there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOOD = "import json,sys; json.dump({'arms': {'a|b': {'score': 0.5}}, 'config': {}}, open(sys.argv[-1], 'w'))"
BAD = "print('it went wrong'); raise SystemExit(3)"
SLOW = "import time; time.sleep(60)"
GATE = GOOD.replace("{'arms'", "{'passed': False, 'arms'") + "; raise SystemExit(1)"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import run_all

    yield run_all
    for name in ("run_all", "bench_programs", "results_page", "results_tables"):
        sys.modules.pop(name, None)


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    from bench_programs import Program

    listed = [
        Program("good", "A good one", ("python", "-c", GOOD), 60, alone=True),
        Program("bad", "A bad one", ("python", "-c", BAD), 60),
        Program("slow", "A slow one", ("python", "-c", SLOW), 1),
        Program("gate", "A gate that does not hold", ("python", "-c", GATE), 60),
        Program("needy", "One without data", ("python", "-c", GOOD, "{scifact}"), 60),
    ]
    monkeypatch.setattr(bench, "programs", lambda **_: listed)

    def ran(*options: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", ["run_all.py", "--out", str(tmp_path / "out"), *options])
        with pytest.raises(SystemExit) as left:
            bench.main()
        document: dict[str, Any] = json.loads((tmp_path / "out" / "results.json").read_text())
        return document | {"code": left.value.code, "page": (tmp_path / "out" / "results.md").read_text()}

    return ran


def test_one_that_fails_stops_no_other_and_everything_is_recorded(run: Run) -> None:
    found = run()
    states = {name: record["status"] for name, record in found["programs"].items()}
    assert states == {"good": "ok", "bad": "failed", "slow": "stopped", "gate": "ok", "needy": "skipped"}
    assert found["code"] == 1
    assert "it went wrong" in found["programs"]["bad"]["log"]
    assert found["programs"]["gate"]["result"]["passed"] is False
    assert "scifact" in found["programs"]["needy"]["reason"]
    assert {"cpu", "cores", "python", "versions", "date", "weights"} <= found["config"].keys()
    assert "## A good one" in found["page"]
    assert r"a\|b" in found["page"]
    assert "took more than 1 s" in found["page"]
    assert "DATA" in found["page"], "the page says that the demo stands in for SQuAD"
    assert str(ROOT) not in json.dumps(found["programs"]["needy"])


def test_what_is_fresh_is_not_run_again_unless_that_is_asked_for(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = run("--only", "good")
    assert first["code"] == 0
    capsys.readouterr()
    second = run("--only", "good")
    assert "good: has a fresh result" in capsys.readouterr().out
    assert second["programs"]["good"]["started"] == first["programs"]["good"]["started"]
    run("--only", "good", "--again")
    assert "good: begins" in capsys.readouterr().out


def test_when_the_time_is_spent_nothing_more_is_begun(run: Run) -> None:
    found = run("--only", "good", "--minutes", "0.001")
    assert found["programs"]["good"]["status"] == "skipped"


TOGETHER = """
import json, os, pathlib, sys, time
place = pathlib.Path(sys.argv[-1]).parent
(place / f"{os.getpid()}.runs").touch()
met, end = False, time.monotonic() + float(sys.argv[1])
while not met and time.monotonic() < end:
    met = len(list(place.glob("*.runs"))) > 1
    time.sleep(0.02)
json.dump({"met": met, "threads": os.environ["OMP_NUM_THREADS"]}, open(sys.argv[-1], "w"))
"""


def test_what_measures_no_times_runs_side_by_side_and_shares_the_cores(
    bench: Any, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench_programs import Program

    listed = [Program(name, name, ("python", "-c", TOGETHER, "20"), 60) for name in ("one", "two")]
    monkeypatch.setattr(bench, "programs", lambda **_: listed)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 6)
    found = run("--jobs", "2")
    assert found["config"]["jobs"] == 2
    assert found["config"]["whole"] is True
    assert "2 run at once. All of it took" in found["page"]
    for record in found["programs"].values():
        assert record["result"] == {"met": True, "threads": "3"}
        assert record["threads"] == 3
    assert run("--jobs", "2")["config"]["whole"] is False, "nothing was run again"


def test_what_measures_times_runs_alone_with_all_cores(bench: Any, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench_programs import Program

    code = TOGETHER + "(place / f'{os.getpid()}.runs').unlink()"
    listed = [Program(name, name, ("python", "-c", code, "0.3"), 60, alone=True) for name in ("one", "two")]
    monkeypatch.setattr(bench, "programs", lambda **_: listed)
    monkeypatch.setattr(bench.os, "cpu_count", lambda: 6)
    for record in run("--jobs", "2")["programs"].values():
        assert record["result"] == {"met": False, "threads": "6"}


def test_by_default_a_core_has_one_job_and_another_model_none_beside_it(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cores, words, jobs in ((2, [], 2), (64, [], 4), (64, ["--model", "other"], 1), (2, ["--jobs", "3"], 3)):
        monkeypatch.setattr(bench.os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr("sys.argv", ["run_all.py", *words])
        assert bench._options().jobs == jobs


def test_every_program_of_the_list_exists_and_has_a_name_of_its_own(bench: Any) -> None:
    from bench_programs import programs

    for squad in (True, False):
        for quick in (True, False):
            listed = programs(squad=squad, quick=quick, root=ROOT)
            assert len({program.name for program in listed}) == len(listed)
            for program in listed:
                assert program.command[0] in ("nnm", "python")
                if not squad:
                    assert "squad" not in program.needs
                if program.command[0] == "python":
                    assert (ROOT / program.command[1]).is_file()


def test_results_of_other_machines_stand_on_the_page_with_their_machine(bench: Any, tmp_path: Path) -> None:
    from results_page import write_page

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = {"arms": {"read": {"seconds": {"median": 0.25}}}, "config": {"machine": "A big one", "command": "do it"}}
    other["config"] |= {"device": "cuda:0", "python": "3.12.3", "versions": {"torch": "2.11.0"}}
    (elsewhere / "ttft_gpu.7b.json").write_text(json.dumps(other))
    config = {**bench.machine(), "model": "m", "weights": "w", "data": ["squad"], "quick": False, "jobs": 2}
    config |= {"whole": False, "seconds": 1.0}
    (tmp_path / "results.json").write_text(json.dumps({"config": config, "programs": {}}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "limits.md").write_text("## What does not work\n\nThis.\n")
    write_page(tmp_path / "results.json", tmp_path / "results.md", elsewhere=elsewhere)
    page = (tmp_path / "results.md").read_text()
    assert "A big one" in page
    assert "`do it`: A big one, cuda:0, Python 3.12.3, torch 2.11.0\n" in page
    assert "250 ms" in page
    assert page.rstrip().endswith("This.")


def test_ending_it_ends_what_runs_and_keeps_what_is_done(tmp_path: Path) -> None:
    code = f"""
import sys, pathlib
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import run_all
from bench_programs import Program
sleeper = "import os, time; open({str(tmp_path / "pid")!r}, 'w').write(str(os.getpid())); time.sleep(60)"
run_all.programs = lambda **_: [Program("good", "g", ("python", "-c", {GOOD!r}), 60, alone=True),
                                Program("slow", "s", ("python", "-c", sleeper), 60)]
sys.argv = ["run_all.py", "--out", {str(tmp_path / "out")!r}]
run_all.main()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pid = tmp_path / "pid"
    while process.poll() is None and not (pid.is_file() and pid.read_text()):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    programs = json.loads((tmp_path / "out" / "results.json").read_text())["programs"]
    assert programs["good"]["status"] == "ok"


def test_the_sentence_for_the_readme_is_made_of_the_pair_at_the_time_of_one_passage(bench: Any) -> None:
    from results_page import for_readme

    def cell(right: float, first: float) -> dict[str, float]:
        return {"exact_match": right, "seconds_to_first_token": first}

    result = {
        "config": {"questions": 160, "passages": 950, "cores": 2, "model": "nnm-mini"},
        "arms": {"exact": {"1": cell(0.4, 0.1), "4": cell(0.35, 0.12)}, "rag": {"1": cell(0.255, 0.16)}},
        "same_time": [
            {"arm": "composed", "rag_passages": 1, "passages": 1, "p_holm": 0.5},
            {"arm": "exact", "rag_passages": 2, "passages": 1, "p_holm": 0.5},
            {"arm": "exact", "rag_passages": 1, "passages": 4, "p_holm": 0.016},
        ],
    }
    said = for_readme({"programs": {"equal_budget": {"result": result}}})
    assert "from 4 passages in 0.12 s" in said
    assert "from one in 0.16 s; EM is 35.0 against 25.5 (p 0.016). With one passage each it is 40.0" in said
    assert not for_readme({"programs": {"equal_budget": {"status": "stopped"}}})
    pair = {"theirs": "oracle rag same order", "identical": 499, "count": 500}
    measured = {
        "gate_qa": {"result": {"comparisons": [pair, pair | {"theirs": "cold", "identical": 3}]}},
        "ttft": {"result": {"ratio": {"injected": {"250": 4.0, "2000": 15.4, "1000": 9.0}, "ram": {"2000": 17.0}}}},
    }
    assert for_readme({"programs": measured}) == (
        "The same passages injected or read give the same answers: 499 of 500 questions, token for token. "
        "At 2,000 tokens the first token comes 15 times sooner than by reading."
    )
