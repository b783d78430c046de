"""What the page shows of run folders, and what the server refuses."""

import json

import numpy as np
import pytest

from rlhf.cli.main import main
from rlhf.errors import UserError
from rlhf.watch.runs import BUCKETS, Runs, flat, thin
from rlhf.watch.server import make_app
from rlhf.watch.static import write_overlay


def test_runs_are_listed_and_appear_and_vanish(make_run, tmp_path):
    folder = make_run("a")
    make_run("sweep/b", steps=10)
    runs = Runs(tmp_path / "runs")
    lines = {line["name"]: line for line in runs.list()}
    assert set(lines) == {"a", "sweep/b"}
    assert (lines["a"]["step"], lines["a"]["total"], lines["a"]["score"], lines["a"]["stage"]) == (30, 30, 1.0, "ppo")
    assert lines["a"]["state"] == "stopped"
    make_run("c")
    (folder / "metrics.jsonl").unlink()
    assert {line["name"] for line in runs.list()} == {"sweep/b", "c"}
    assert runs.detail("a") is None
    with pytest.raises(UserError, match="there is no folder"):
        Runs(tmp_path / "absent")


def test_details_grow_with_the_run(make_run, tmp_path):
    folder = make_run("a", lr=1e-5)
    runs = Runs(tmp_path / "runs")
    detail = runs.detail("a")
    assert detail["curves"]["objective/kl"]["x"] == list(range(1, 31))
    assert detail["settings"]["ppo.lr"] == "1e-05"
    assert "output" not in detail["settings"]
    assert detail["warnings"] == []
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps({"step": s, "objective/kl": 50.0}) + "\n" for s in range(31, 41))
    detail = runs.detail("a")
    assert len(detail["curves"]["objective/kl"]["x"]) == 40
    assert [w["name"] for w in detail["warnings"]] == ["kl_high"]
    assert "ppo.kl_target" in detail["warnings"][0]["setting"]


def test_samples_by_step(make_run, tmp_path):
    make_run("a")
    runs = Runs(tmp_path / "runs")
    assert runs.samples("a")["steps"] == [0, 30]
    assert runs.samples("a")["rows"][3]["response"] == "text 3 at 30"
    assert runs.samples("a", 0)["rows"][3]["response"] == "text 3 at 0"
    assert runs.samples("a", 7)["rows"] == []


def test_a_long_curve_becomes_means_with_minima_and_maxima():
    steps = np.arange(1.0, 3001.0)
    values = np.where(steps == 1500, 99.0, 1.0)
    values[10] = np.nan
    curve = thin(steps, values)
    assert curve is not None
    assert len(curve["x"]) == len(curve["y"]) == BUCKETS
    assert max(curve["high"]) == 99.0
    assert set(curve["low"]) == {1.0}
    assert max(curve["y"]) < 11
    assert thin(steps, np.full(3000, np.nan)) is None
    assert thin(steps[:3], values[:3]) == {"x": [1, 2, 3], "y": [1.0, 1.0, 1.0]}


def test_settings_are_flat_text():
    assert flat({"output": "x", "seed": 0, "ppo": {"lr": 1e-5, "clip": None}, "reward": {"sources": {}}}) == {
        "seed": "0", "ppo.lr": "1e-05", "ppo.clip": "null", "reward.sources": "{}"
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def client(make_run, tmp_path, serve_app):
    make_run("a")
    (tmp_path / "secret").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (tmp_path / "secret" / name).write_text('{"step": 1}\n')
    return serve_app(make_app(Runs(tmp_path / "runs"), "secret"))


def test_calls(client):
    assert [run["name"] for run in client.get("/api/runs")["runs"]] == ["a"]
    assert client.get("/api/run?name=a")["curves"]
    assert client.get("/api/samples?name=a&step=0")["step"] == 0


@pytest.mark.parametrize("path", ["/api/runs", "/api/run?name=a", "/api/samples?name=a", "/"])
def test_calls_without_the_token_or_from_elsewhere_are_refused(client, path):
    assert client.request("GET", path, Authorization=None).status == 401
    assert client.request("GET", path, Authorization="Bearer wrong").status == 401
    assert client.request("GET", path, Origin="http://evil.example").status == 403
    assert client.request("GET", path, Host="evil.example").status == 403
    assert client.request("POST", path, {}).status == 405


@pytest.mark.parametrize("name", ["../secret", "absent", "", "/etc", "a/../../secret", "a%00"])
def test_only_runs_below_the_folder_are_read(client, name):
    assert client.request("GET", f"/api/run?name={name}").status == 404
    assert client.request("GET", f"/api/samples?name={name}").status == 404
    assert client.request("GET", "/api/samples?name=a&step=x").status == 400


def test_the_page_allows_no_script_from_elsewhere(client):
    reply = client.request("GET", "/?token=secret")
    assert reply.status == 200
    assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
    assert "prompt 0" not in reply.text
    assert client.request("GET", "/static/watch.js").status == 200


# --------------------------------------------------------------------------------------------------------- as a file


def test_report_of_two_runs_holds_all_data_and_is_inert(make_run, tmp_path, capsys):
    hostile = "</script><script>alert(1)</script><!-- "
    one, two = make_run("a", texts=[hostile]), make_run("b", lr=2.0)
    output = tmp_path / "both.html"
    assert main(["report", str(one), str(two), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    page = output.read_text()
    assert page.count("<script") == 2
    assert hostile not in page
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert set(data["details"]) == {"a", "b"}
    assert data["samples"]["a"]["by_step"]["30"][0]["response"] == hostile
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert main(["report", str(one), str(two), "--output", str(output)]) == 0  # a report may be replaced


def test_wrong_runs_and_other_files_are_refused(make_run, tmp_path):
    one = make_run("a")
    with pytest.raises(UserError, match="is named twice"):
        write_overlay([one, one], tmp_path / "x.html")
    with pytest.raises(UserError, match="there is no run folder at"):
        write_overlay([one, tmp_path / "absent"], tmp_path / "x.html")
    (tmp_path / "mine.html").write_text("my page")
    with pytest.raises(UserError, match=r"mine.html exists and is no report"):
        write_overlay([one, make_run("b")], tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "my page"
