"""Reward servers over real sockets: our client with servers that misbehave, and our server with requests that do."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from accelerate.state import AcceleratorState

from rlhf.cli.main import main
from rlhf.config.scores import RewardConfig
from rlhf.errors import UserError
from rlhf.rewards import servers
from rlhf.rewards.mixes import Mix, score_texts
from rlhf.rewards.results import TokenRewards
from rlhf.trainers.ppo import PPOTrainer

pytest.importorskip("httpx2")
pytest.importorskip("tenacity")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from rlhf.rewards.functions import FunctionReward  # noqa: E402
from rlhf.rewards.servers import ServerReward  # noqa: E402
from rlhf.rewards.serving import is_loopback, make_app  # noqa: E402

TEXTS = (["p", "q", "r"], ["a", "bb", "ccc"], {"n": [1, 2, 3]})


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(servers, "FIRST_WAIT", 0.01)


@pytest.fixture
def serve():
    """`serve(answer)`: the address of a server that calls `answer(request, number)` and sends its status and body.

    An answer of None closes the connection without one.
    """
    running = []

    def start(answer, port=0):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    requests.append((body, dict(self.headers)))
                    number = len(requests)
                result = answer(body, number)
                if result is None:
                    return
                status, content = result
                self.send_response(status)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        requests, lock = [], threading.Lock()
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        server.requests = requests
        server.url = f"http://127.0.0.1:{server.server_port}/score"
        return server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def lengths(body, number):
    return 200, {"scores": [len(text) for text in body["completions"]]}


# ------------------------------------------------------------------------------------------------------------- client


def test_a_request_has_texts_columns_and_step_and_rows_stay_in_order(serve):
    server = serve(lengths)
    source = ServerReward(server.url, batch_size=2)
    assert source(*TEXTS) == [1.0, 2.0, 3.0]
    bodies = sorted((body for body, _ in server.requests), key=lambda body: body["prompts"])
    assert bodies == [
        {"prompts": ["p", "q"], "completions": ["a", "bb"], "columns": {"n": [1, 2]}, "step": 0},
        {"prompts": ["r"], "completions": ["ccc"], "columns": {"n": [3]}, "step": 0},
    ]
    assert not any("authorization" in {key.lower() for key in headers} for _, headers in server.requests)


def test_requests_are_sent_at_the_same_time_up_to_the_bound(serve):
    """Each of two requests waits until the other one is there; a third one may not be."""
    both = threading.Barrier(2, timeout=60)
    here, most, lock = [0], [0], threading.Lock()

    def answer(body, number):
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        both.wait()
        with lock:
            here[0] -= 1
        return lengths(body, number)

    texts = (["p"] * 6, ["a"] * 6, {})
    assert ServerReward(serve(answer).url, batch_size=1, max_in_flight=2)(*texts) == [1.0] * 6
    assert most[0] == 2


def test_null_and_rewards_by_token_come_over_the_wire(serve):
    server = serve(lambda body, number: (200, {"scores": [None, [[1, 0.5], [2, 2.0]], [1, 2, 3]]}))
    scores = ServerReward(server.url).score(*TEXTS)
    assert scores == [None, TokenRewards([0.5, 2.0], [1, 2]), TokenRewards([1.0, 2.0, 3.0])]


@pytest.mark.parametrize("failure", [None, (503, {"error": "busy"}), (429, b"slow down"), (500, b"")])
def test_a_server_that_is_away_or_busy_is_asked_again(serve, failure):
    server = serve(lambda body, number: failure if number < 3 else lengths(body, number))
    assert ServerReward(server.url, retries=2)(*TEXTS) == [1.0, 2.0, 3.0]
    assert len(server.requests) == 3


def test_a_dead_server_may_come_back(serve):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    source = ServerReward(f"http://127.0.0.1:{port}/score", retries=50)
    attempts, post = [], source._post

    async def start_after_two(body):
        attempts.append(body)
        if len(attempts) == 3:
            serve(lengths, port)
        return await post(body)

    source._post = start_after_two
    assert source(*TEXTS) == [1.0, 2.0, 3.0]
    assert len(attempts) >= 3


def test_a_dead_server_is_reported_after_its_attempts():
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/score"
    with pytest.raises(UserError, match=rf"reward server {url} has not answered in 3 attempts: ConnectError"):
        ServerReward(url, retries=2)(*TEXTS)


def test_a_server_that_hangs_runs_into_the_time_limit(serve):
    """Before its answer, or within it, sending a byte now and then."""
    released = threading.Event()

    def hang(body, number):
        released.wait(60)

    with pytest.raises(UserError, match=r"has not answered in one attempt: no answer within 0.2 s \(timeout\)"):
        ServerReward(serve(hang).url, retries=0, timeout=0.2)(*TEXTS)
    released.set()
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while True:
            try:
                connection.sendall(b" ")
            except OSError:
                return
            time.sleep(0.02)

    threading.Thread(target=drip, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/score"
    with pytest.raises(UserError, match=r"no answer within 0.2 s"):
        ServerReward(url, retries=0, timeout=0.2)(*TEXTS)
    listener.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"<html>"), "answers with '<html>', which is no JSON"),
        ((200, b""), "answers with '', which is no JSON"),
        ((200, b"[" * 100_000), r"answers with '\[\[\[.*, which is no JSON"),
        ((200, [1, 2, 3]), r"answers with \[1, 2, 3\], but must answer with {'scores': \[...\]}"),
        ((200, {"scores": 3}), r"answers with {'scores': 3}, but must answer"),
        ((200, {"scores": [1, 2]}), "returned 2 scores for 3 completions"),
        ((200, {"scores": [1, 2, "x"]}), r"returned 'x' for the completion 'ccc' \(row 2, prompt 'r'\)"),
        ((200, b'{"scores": [1, NaN, 3]}'), r"returned nan for the completion 'bb' \(row 1, prompt 'q'\)"),
        ((200, b'{"scores": [1, 1e999, 3]}'), "returned inf for the completion 'bb'"),
        ((200, {"scores": [1, None, 3], "errors": [None, "boom", None]}), "reward server .*: boom"),
        ((200, {"scores": [1, 2, 3], "errors": ["x"]}), "must have one entry for each score"),
        ((302, b""), "refuses the request with status 302"),
        ((404, b"no such page"), "refuses the request with status 404: no such page"),
        ((401, b""), "status 401: ; name the environment variable of its token in token_env"),
        ((422, {"error": "broken function"}), "status 422: .*broken function"),
    ],
)
def test_other_answers_are_errors_at_once(serve, answer, message):
    server = serve(lambda body, number: answer)
    with pytest.raises(UserError, match=message):
        ServerReward(server.url)(*TEXTS)
    assert len(server.requests) == 1


def test_an_answer_without_end_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(servers, "MAX_ANSWER", 2**20)
    with pytest.raises(UserError, match="answers with more than 1 MiB"):
        ServerReward(serve(lambda body, number: (200, b" " * 2**21)).url)(*TEXTS)


def test_skipped_failures_of_a_server_are_those_of_their_rows(serve):
    server = serve(lambda body, number: (200, b'{"scores": [1, NaN, 3]}'))
    scores = score_texts(ServerReward(server.url), *TEXTS, skip=True)
    assert scores.totals == [1.0, 0.0, 3.0]
    refusing = serve(lambda body, number: (400, b"no"))
    errors = score_texts(ServerReward(refusing.url), *TEXTS, skip=True).errors
    assert all("status 400" in error for error in errors)


def test_a_token_is_sent_and_is_in_no_message(serve, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_TEST", "s3cret-token")
    server = serve(lambda body, number: (403, b"s3cret-token is wrong"))
    source = ServerReward(server.url, token_env="TOKEN_OF_TEST")
    with pytest.raises(UserError, match=r"status 403: \*\*\* is wrong"):
        source(*TEXTS)
    headers = {name.lower(): value for name, value in server.requests[0][1].items()}
    assert headers["authorization"] == "Bearer s3cret-token"
    assert "s3cret" not in str(source)


@pytest.mark.parametrize(("value", "state"), [(None, "is not set"), (" ", "is not set"), ("a\nb", "holds characters")])
def test_a_token_that_cannot_be_sent_is_reported_when_the_source_is_opened(monkeypatch, value, state):
    monkeypatch.delenv("TOKEN_OF_TEST", raising=False)
    if value is not None:
        monkeypatch.setenv("TOKEN_OF_TEST", value)
    with pytest.raises(UserError, match=f"token_env names the environment variable TOKEN_OF_TEST, which {state}"):
        ServerReward("http://x/", token_env="TOKEN_OF_TEST")


def test_columns_that_json_does_not_have_are_named():
    with pytest.raises(UserError, match="column 'image' cannot be sent to reward server http://x/ as JSON"):
        ServerReward("http://x/")(["p"], ["a"], {"image": [b"bytes"]})


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(servers.importlib, "import_module", missing)
    with pytest.raises(UserError, match="need the package httpx2; pip install httpx2 tenacity starlette uvicorn"):
        ServerReward("http://x/")


# ------------------------------------------------------------------------------------------------------------- server


@pytest.fixture
def ours():
    """`ours(source, token, max_body)`: the address of our server with a source, on a free port."""
    running = []

    def start(source, token=None, max_body=2**20):
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(make_app(source, token, max_body), log_level="error", access_log=False, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/score"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


def test_any_source_scores_through_our_server_as_it_does_without(ours):
    def mixed(completions, n, step):
        return [None, [(1, 0.5), (2, float(step))], [1, 2, n[2]]]

    assert ServerReward(ours(FunctionReward(mixed, "mixed"))).score(*TEXTS) == [
        None,
        TokenRewards([0.5, 0.0], [1, 2]),
        TokenRewards([1.0, 2.0, 3.0]),
    ]
    parts = {name: FunctionReward(lambda completions: [len(c) for c in completions], name) for name in "ab"}
    assert ServerReward(ours(Mix(parts, {"a": 2.0, "b": 1.0})))(*TEXTS) == [3.0, 6.0, 9.0]
    assert ServerReward(ours(lambda prompts, completions, columns: [1, 2, 3]))(*TEXTS) == [1.0, 2.0, 3.0]


def test_failures_of_a_served_source_are_those_of_the_run(ours):
    nan = FunctionReward(lambda completions: [1, float("nan"), 3], "nan")
    with pytest.raises(UserError, match="reward function nan returned nan for the completion 'bb'"):
        ServerReward(ours(nan))(*TEXTS)
    assert score_texts(ServerReward(ours(nan)), *TEXTS, skip=True).totals == [1.0, 0.0, 3.0]

    def broken(completions):
        raise KeyError("x")

    with pytest.raises(UserError, match=r"status 422: .*reward function broken raised KeyError"):
        ServerReward(ours(FunctionReward(broken, "broken")))(*TEXTS)


def test_our_server_wants_its_token(ours, monkeypatch):
    url = ours(FunctionReward(lambda completions: [1] * len(completions), "one"), token="right")
    for token, expected in (("wrong", "status 401"), (None, "status 401")):
        if token is not None:
            monkeypatch.setenv("TOKEN_OF_TEST", token)
        with pytest.raises(UserError, match=expected):
            ServerReward(url, token_env=None if token is None else "TOKEN_OF_TEST")(*TEXTS)
    monkeypatch.setenv("TOKEN_OF_TEST", "right")
    assert ServerReward(url, token_env="TOKEN_OF_TEST")(*TEXTS) == [1.0] * 3


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "the body is no JSON"),
        (b"[" * 100_000, {}, 400, "the body is no JSON"),
        (b"[]", {}, 400, "must be an object"),
        ({"prompts": ["p"]}, {}, 400, "completions must be a list of texts"),
        ({"completions": [1], "prompts": ["p"]}, {}, 400, "completions must be a list of texts"),
        ({"completions": ["a"]}, {}, 400, "prompts must be a list"),
        ({"completions": ["a"], "prompts": [3]}, {}, 400, "prompts must be a list of texts"),
        ({"completions": ["a", "b"], "prompts": ["p"]}, {}, 400, "there are 2 completions, but 1 prompts"),
        ({"completions": ["a"], "prompts": ["p"], "columns": {"n": []}}, {}, 400, "1 completions, but 0 n"),
        ({"completions": ["a"], "prompts": ["p"], "columns": []}, {}, 200, None),
        ({"completions": ["a"], "prompts": ["p"], "columns": [1]}, {}, 400, "columns must be an object of lists"),
        ({"completions": ["a"], "prompts": ["p"], "step": -1}, {}, 400, "step must be a whole number"),
        ({"completions": ["a"], "prompts": ["p"], "steps": 1}, {}, 400, "unknown key 'steps'"),
        ({"completions": ["a"], "prompts": ["p"]}, {"content-type": "text/plain"}, 415, "must be application/json"),
        ({"completions": ["a" * 3000], "prompts": ["p"]}, {}, 413, "larger than 2000 bytes"),
        ({"completions": [], "prompts": []}, {}, 200, None),
    ],
)
def test_requests_are_checked(ours, body, headers, status, message):
    import httpx2

    url = ours(FunctionReward(lambda completions: [1.0] * len(completions), "one"), max_body=2000)
    if body == b"[" * 100_000:
        url = ours(FunctionReward(lambda completions: [], "one"))
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = httpx2.post(url, content=content, headers={"content-type": "application/json"} | headers)
    if message is None:
        assert answer.status_code == 200
        return
    assert (answer.status_code, message in answer.json()["error"]) == (status, True)


def test_a_large_body_without_a_length_is_refused_while_it_is_read(ours):
    import httpx2

    def parts():
        yield b" " * 1500
        yield b" " * 1500

    url = ours(FunctionReward(lambda completions: [], "none"), max_body=2000)
    answer = httpx2.post(url, content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert httpx2.get(url.replace("/score", "/health")).json() == {"status": "ok"}
    assert httpx2.get(url).status_code == 405


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("1.2.3.4", False), ("a.b", False)],
)
def test_loopback_addresses(host, expected):
    assert is_loopback(host) == expected


# ----------------------------------------------------------------------------------------------------- whole commands


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "host is '0.0.0.0', which other machines can reach, but token_env is not set"),
        (["--token_env", "NO_SUCH_VARIABLE"], "token_env names the environment variable NO_SUCH_VARIABLE, which is "),
        (["--port", "-1"], "port is -1, but must be from 0 to 65535"),
        (["--max_body_mb", "0"], "max_body_mb is 0.0, but must be positive"),
        (["--reward.rule", "null"], "nothing to serve: set reward.model, reward.function, reward.rule or"),
        (["--reward.rule", "none"], "there is no rule 'none'"),
        (["--host", "no.such.host.invalid", "--token_env", "TOKEN_OF_TEST"], "cannot listen at no.such.host.invalid"),
    ],
)
def test_the_command_refuses_what_cannot_be_served(options, message, capsys, monkeypatch):
    monkeypatch.setenv("TOKEN_OF_TEST", "token")
    with pytest.raises(SystemExit) as exit_:
        main(["serve-reward", "--reward.rule", "repetition", *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_port_in_use_is_reported(capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(SystemExit):
        main(["serve-reward", "--reward.rule", "repetition", "--port", str(listener.getsockname()[1])])
    assert "cannot listen at 127.0.0.1, port" in capsys.readouterr().err


def test_a_run_saves_its_last_step_when_the_server_stays_away_and_continues_with_the_printed_command(
    job, change, serve, monkeypatch
):
    """The start's evaluation and two steps are scored, the third is not."""
    monkeypatch.setenv("TOKEN_OF_TEST", "s3cret-token")
    server = serve(lambda body, number: lengths(body, number) if number < 4 else (503, b"away"))
    reward = RewardConfig(url=server.url, retries=1, token_env="TOKEN_OF_TEST")
    trainer = PPOTrainer(change(job, reward=reward))
    with pytest.raises(UserError) as error:
        trainer.train()
    trainer.run.close(trainer.accelerator)
    command = f"rlhf ppo --config {trainer.run.path}/config.yaml --resume auto"
    assert f"has not answered in 2 attempts: status 503: away; step 2 is saved, and `{command}`" in str(error.value)
    for file in trainer.run.path.rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes()
    AcceleratorState._reset_state(True)
    back = serve(lengths, server_port_of(server))
    assert main(command.split()[1:]) == 0
    assert back.requests
    steps = [json.loads(line)["step"] for line in (trainer.run.path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def server_port_of(server):
    """The port of a server, which is shut down to free it."""
    server.shutdown()
    server.server_close()
    return server.server_port
