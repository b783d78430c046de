"""The server as a client sees it: what is refused, answers and undo, texts that are markup."""

import json

import pytest

from rlhf.people.pairs import Pair
from rlhf.people.store import Store


def test_a_pair_is_answered_and_the_next_one_returned(store, serve):
    client = serve(store)
    state = client.question()
    assert state["annotator"] == "ada"
    assert set(state["question"]) == {"id", "prompt", "left", "right"}  # and nothing of where the answers come from
    assert state["progress"] == {"answered": 0, "open": 30, "pace": None, "repeats": 0, "consistent": 0}
    reply = client.answer(state["question"]["id"], "left", clearly=True, seconds=2.5)
    assert reply.status == 200
    assert reply.json["question"]["prompt"] != state["question"]["prompt"]
    assert reply.json["progress"] == {"answered": 1, "open": 29, "pace": 2.5, "repeats": 0, "consistent": 0}
    [row] = store.rows()
    assert (row["chosen"], row["clearly"], row["seconds"]) == (state["question"]["left"], True, 2.5)


def test_an_answer_of_another_window_gets_the_current_question(store, serve):
    client = serve(store)
    first = client.question()["question"]
    reply = client.answer("old")
    assert (reply.status, reply.json["question"]) == (409, first)
    assert store.rows() == []


def test_undo(store, serve):
    client = serve(store)
    first = client.question()["question"]
    client.answer(first["id"])
    reply = client.undo()
    assert reply.status == 200
    assert reply.json["question"]["prompt"] == first["prompt"]
    assert reply.json["progress"]["answered"] == 0
    assert client.undo().status == 409


def test_two_people_at_once(store, serve):
    ada, ben = serve(store, "ada"), serve(Store(store.output), "ben")
    prompts = []
    for _ in range(15):
        for client in (ada, ben):
            question = client.question()["question"]
            prompts.append(question["prompt"])
            assert client.answer(question["id"]).status == 200
    assert len(set(prompts)) == 30
    assert ada.question()["question"] is None
    assert {row["annotator"] for row in store.rows()} == {"ada", "ben"}


# --------------------------------------------------------------------------------------------------------- security

PATHS = [("GET", "/api/question", None), ("POST", "/api/answer", {}), ("POST", "/api/undo", {})]


@pytest.mark.parametrize(("method", "path", "body"), PATHS)
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer ", "Basic secret", "secret", "Bearer secre\xe9"]
)
def test_calls_without_the_token_are_refused(store, serve, method, path, body, authorization):
    client = serve(store)
    reply = client.request(method, path, body, Authorization=authorization)
    assert reply.status == 401
    assert "token" in reply.json["error"]
    assert "prompt" not in reply.text


@pytest.mark.parametrize("path", ["/", "/summary"])
def test_pages_need_the_token_in_their_address(store, serve, path):
    client = serve(store)
    assert client.request("GET", path).status == 401
    assert client.request("GET", f"{path}?token=wrong").status == 401
    reply = client.request("GET", f"{path}?token=secret", Authorization=None)
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/html")


@pytest.mark.parametrize(("method", "path", "body"), [*PATHS, ("GET", "/?token=secret", None)])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
    ],
)
def test_requests_of_other_origins_are_refused(store, serve, method, path, body, headers):
    client = serve(store)
    assert client.request(method, path, body, **headers).status == 403
    assert store.rows() == []


def test_requests_of_the_page_itself_and_through_a_tunnel_are_accepted(store, serve):
    """A tunnel may end at another port of the browser's machine."""
    client = serve(store)
    for name in ("127.0.0.1", "localhost", "127.0.0.1:9999"):
        headers = {"Host": name, "Origin": f"http://{name}", "Sec_Fetch_Site": "same-origin"}
        assert client.request("POST", "/api/undo", {}, **headers).status == 409
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert client.request("GET", "/?token=secret", **link).status == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_bodies_of_other_content_types_are_refused(store, serve, kind):
    client = serve(store)
    question = client.question()["question"]["id"]
    body = {"question": question, "choice": "left"}
    assert client.request("POST", "/api/answer", body, Content_Type=kind).status == 415
    assert store.rows() == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"[" * 9000, 400),
        ({"question": 1, "choice": "left"}, 400),
        ({"question": "x", "choice": "a"}, 400),
        ({"question": "x", "choice": ["left"]}, 400),
        ({"question": "x", "choice": "left", "clearly": "yes"}, 400),
        ({"question": "x", "choice": "left", "seconds": -1}, 400),
        ({"question": "x", "choice": "left", "seconds": "1"}, 400),
        (b'{"question": "x", "choice": "left", "seconds": NaN}', 400),
        ({"question": "x" * 20_000, "choice": "left"}, 413),
    ],
)
def test_bad_bodies_are_refused(store, serve, body, status):
    client = serve(store)
    assert client.request("POST", "/api/answer", body).status == status
    assert store.rows() == []


@pytest.mark.parametrize(
    "path",
    [
        "/?token=secret",
        "/summary?token=secret",
        "/static/compare.js",
        "/api/question",
        "/nowhere",
        "/static/../store.py",
    ],
)
def test_every_response_has_the_security_headers(store, serve, path):
    client = serve(store)
    reply = client.request("GET", path)
    policy = reply.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert reply.headers["Referrer-Policy"] == "no-referrer"
    assert reply.status == (404 if "nowhere" in path or ".." in path else 200)
    assert "Access-Control-Allow-Origin" not in reply.headers


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/answer"), ("GET", "/api/undo"), ("POST", "/api/question")])
def test_reading_never_writes(store, serve, method, path):
    assert serve(store).request(method, path, {}).status == 405


def test_texts_are_data_and_origins_are_escaped_in_the_summary(tmp_path, serve):
    text = "</script><script>alert(1)</script>"
    store = Store(tmp_path / "preferences.jsonl")
    store.add("test", [(0, Pair(text, text, "b", f"{text}a", f"{text}b"))])
    client = serve(store, f"<b>{text}")
    state = client.request("GET", "/api/question")
    assert state.headers["Content-Type"] == "application/json"
    assert text in (state.json["question"]["left"], state.json["question"]["right"])
    client.answer(state.json["question"]["id"])
    page = client.request("GET", "/summary?token=secret").text
    assert "<script" not in page
    assert "&lt;script&gt;alert" in page


def test_pages_ask_for_nothing_from_elsewhere(store, serve):
    client = serve(store)
    for path in ("/?token=secret", "/summary?token=secret", "/static/compare.css", "/static/compare.js"):
        text = client.request("GET", path).text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
        assert " style=" not in text  # the policy would drop it


def test_faults_are_reported_and_nothing_is_lost(store, serve, monkeypatch):
    """The page sends the same answer again until it is saved."""
    client = serve(store)
    question = client.question()["question"]["id"]

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "answer", fail)
        reply = client.answer(question)
        assert (reply.status, reply.json["error"]) == (500, "OSError: disk full")
        assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert client.answer(question).status == 200
    assert len(store.rows()) == 1


def test_a_summary_without_answers_has_dashes(store, serve):
    page = serve(store).request("GET", "/summary?token=secret").text
    assert "0 of 30 pairs compared" in page
    assert "–" in page
    assert json.dumps(None) not in page
