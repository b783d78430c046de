"""Uploads to the hub, against a stand-in that answers the hub's HTTP calls on the loopback address."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from rlhf.cli.push import plan
from rlhf.config.commands import PushJob
from rlhf.errors import UserError

ROOT = Path(__file__).parents[3]


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, and remembers what it was sent."""

    files: tuple[str, ...] = ()
    """Of the repository, before the upload."""
    refuse: str | None = None
    received: dict[str, bytes]
    created: list[dict]

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = f"http://{self.headers['Host']}"
        answer: object = {}
        if self.refuse:
            self._send(403, {"error": self.refuse})
            return
        if self.path == "/api/repos/create":
            type(self).created.append(json.loads(body))
            answer = {"url": f"{address}/org/name", "id": "1"}
        elif "/tree/" in self.path:
            answer = [{"type": "file", "path": name, "size": 1, "oid": "1"} for name in (".gitattributes", *self.files)]
        elif "/preupload/" in self.path:
            answer = {
                "files": [
                    {
                        "shouldIgnore": False,
                        **file,
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        elif self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{address}/put/{item['oid']}"}} for item in objects]
            objects = [{**item, "actions": action} for item, action in zip(objects, actions, strict=True)]
            answer = {"transfer": "basic", "objects": objects}
        elif self.path.startswith("/put/"):
            self.received["weights"] = body
        elif "/commit/" in self.path:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{address}/org/name/commit/1", "commitOid": "1", "pullRequestUrl": None}
        self._send(200, answer)

    def _send(self, status: int, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    class Fresh(Hub):
        address = ""

    Fresh.received, Fresh.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    Fresh.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield Fresh
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run with files that nobody else should get."""
    folder = tmp_path / "run"
    (folder / "model" / "critic").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "value_head.safetensors", "critic/config.json"):
        (folder / "model" / name).write_text("{}")
    for name in (".env", "notes.md", "training.pt"):
        (folder / "model" / name).write_text("hf_secret")
    (folder / "config.yaml").write_text("ppo: {lr: 1.0e-5}\nmodel: {path: org/base}\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "objective/score": 1.0}\n')
    return folder


def push(run: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(run / "hub"), **environment}
    command = [sys.executable, "-m", "rlhf.cli.main", "push", str(run), "--repo", "org/name", *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)


def test_the_model_and_its_card_are_uploaded_and_nothing_else(hub, run):
    result = push(run, HF_ENDPOINT=hub.address, HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert f"uploaded to {hub.address}/org/name" in result.stdout
    assert "not uploaded: .env, critic/config.json, notes.md, training.pt, value_head.safetensors" in result.stdout
    assert sorted(hub.received) == ["README.md", "config.json", "tokenizer.json", "weights"]
    assert hub.created == [{"name": "name", "organization": "org", "visibility": "private"}]
    assert b"base_model: org/base" in hub.received["README.md"]
    assert not any(b"hf_secret" in content for content in hub.received.values())


@pytest.mark.slow
def test_what_the_hub_says_ends_in_one_line(hub, run):
    hub.files = ("config.json", "model.safetensors")
    environment = {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_secret"}
    result = push(run, **environment)
    assert (result.returncode, hub.received) == (2, {})
    assert "error: org/name has files already (config.json, model.safetensors); add --overwrite true" in result.stderr
    assert push(run, "--overwrite", "true", **environment).returncode == 0
    hub.refuse = "you may not write here"
    result = push(run, **environment)
    assert result.returncode == 2
    assert "error: the hub refused the upload to org/name: you may not write here" in result.stderr
    for changes, message in (
        ({"HF_TOKEN": ""}, "there is no token of the hub"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "the upload to org/name failed: "),
    ):
        result = push(run, **{**environment, **changes})
        assert result.returncode == 2
        assert f"error: {message}" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_dry_run_sends_nothing(run, monkeypatch, capsys):
    from rlhf.cli.main import main

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(run), "--repo", "org/name", "--dry_run", "true"]) == 0
    out = capsys.readouterr().out
    assert "model.safetensors" in out
    assert "4 files" in out


def test_the_critic_goes_along_by_option(run):
    files = plan(PushJob(str(run), "org/name", critic=True)).files
    assert {"value_head.safetensors", "critic/config.json"} <= set(files)


def test_an_adapter_over_a_local_folder_needs_a_base_on_the_hub(run):
    (run / "model" / "config.json").unlink()
    config = {"base_model_name_or_path": str(run / "model"), "r": 8}
    (run / "model" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="adapter over the local folder model, which nobody else has"):
        plan(PushJob(str(run), "org/name"))
    upload = plan(PushJob(str(run), "org/name", base="org/base-1B"))
    assert json.loads(upload.replaced["adapter_config.json"]) == {"base_model_name_or_path": "org/base-1B", "r": 8}
    assert b"base_model: org/base-1B" in upload.replaced["README.md"]


def test_folders_without_a_model_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="there is no run folder at"):
        plan(PushJob(str(tmp_path / "absent"), "org/name"))
    with pytest.raises(UserError, match="holds a whole model, which has none"):
        plan(PushJob(str(run), "org/name", base="org/base"))
    (run / "model").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="the run has not finished"):
        plan(PushJob(str(run), "org/name"))
