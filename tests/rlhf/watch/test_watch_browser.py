"""The page in a real headless Chromium: curves, samples, the address, a run that grows, odd texts, many runs."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from rlhf.config.parsing import to_yaml
from rlhf.watch.runs import Runs
from rlhf.watch.server import make_app
from rlhf.watch.static import write_overlay

pytestmark = pytest.mark.slow

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)>"
HEBREW = "שלום, זה סרט טוב"


@pytest.fixture
def expect():
    """Waits until a locator is as expected."""
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def open_page(serve_app, open_address, tmp_path):
    """`open_page("#?run=a", width=360)`: the page of `tmp_path / "runs"`."""

    def start(view="", **options):
        client = serve_app(make_app(Runs(tmp_path / "runs"), "secret"))
        return open_address(f"http://127.0.0.1:{client.port}/?token=secret{view}", **options)

    return start


def test_runs_are_laid_over_one_another_and_settings_that_differ_are_listed(make_run, open_page, expect):
    make_run("a", lr=1e-5)
    make_run("b", lr=2e-5)
    page = open_page()
    page.wait_for_selector("figure[data-chart='Score against KL']")
    assert page.locator("figure[data-chart=Score] path.line").count() == 2
    [difference] = page.locator("#differences tbody tr").all_inner_texts()
    assert sorted(difference.split()) == ["1e-05", "2e-05", "ppo.lr"]
    page.uncheck("[data-run=b]")
    expect(page.locator("figure[data-chart=Score] path.line")).to_have_count(1)
    assert "Choose two runs" in page.inner_text("#differences")
    page.click("#other summary")
    page.fill("#metric-filter", "time")
    assert page.locator("#other-charts figure").count() == 1


def test_samples_are_found_by_score_text_and_order_and_the_address_reopens_the_view(make_run, open_page, expect):
    make_run("a")
    page = open_page()
    page.wait_for_selector(".sample")
    assert page.inner_text("#shown") == "10 of 12 prompts"
    page.select_option("#order", "best")
    assert "prompt 11" in page.locator(".sample").first.inner_text()
    page.fill("#search", "text 7")
    expect(page.locator(".sample")).to_have_count(1)
    page.fill("#search", "")
    page.locator(".bars button:not([disabled])").first.click()
    expect(page.locator("#shown")).not_to_have_text("10 of 12 prompts")
    shown = page.inner_text("#shown")
    assert page.locator(".sample").count() < 5
    page.select_option("#colour", "token_values")
    assert page.locator(".sample span.less-4").count() > 0
    page.reload()
    page.wait_for_selector(".sample")
    assert page.inner_text("#shown") == shown
    assert page.input_value("#order") == "best"
    assert page.input_value("#colour") == "token_values"
    page.get_by_role("button", name="Over time").first.click()
    expect(page.locator("#shown")).to_have_text("One prompt at 2 evaluations")
    assert page.locator(".side").count() == 2
    page.get_by_role("button", name="All prompts").click()
    page.wait_for_selector(".sample ~ .sample")


@pytest.mark.parametrize("as_file", [False, True])
def test_odd_texts_show_properly_and_do_nothing(make_run, open_page, open_address, tmp_path, as_file):
    folder = make_run("a", texts=[SCRIPT, "word " * 20_000, HEBREW, ""])
    other = make_run("b", texts=[SCRIPT, "x", HEBREW, ""])
    if as_file:
        page = open_address(f"file://{write_overlay([folder, other], tmp_path / 'both.html')}", width=360)
    else:
        page = open_page("#?run=a", width=360)
    page.wait_for_selector(".sample")
    texts = page.locator(".side .text")
    assert "<script>" in texts.first.inner_text()
    assert page.locator(".empty").count() >= 1
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    hebrew = page.locator(".side .text", has_text="שלום").first
    assert hebrew.evaluate("e => getComputedStyle(e).unicodeBidi") == "plaintext"


def test_environment_tokens_are_told_apart(make_run, open_page):
    folder = make_run("a", texts=["4 higher 6"])
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    with open(folder / "samples.jsonl", "w") as file:
        file.writelines(json.dumps({**row, "from_environment": [False, True, False]}) + "\n" for row in rows)
    page = open_page()
    page.wait_for_selector(".sample .environment")
    assert page.locator(".sample .environment").first.inner_text() == "higher"


def test_a_running_ppo_is_followed(open_page, job, change, tmp_path):
    """The real command in the background; the page's curve grows, and the run ends as finished."""
    config = tmp_path / "job.yaml"
    output = tmp_path / "runs" / "live"
    (tmp_path / "runs").mkdir()
    config.write_text(to_yaml(change(job, ppo={"total_episodes": 1600}, output=str(output))))
    page = open_page()
    run = subprocess.Popen([sys.executable, "-m", "rlhf.cli.main", "ppo", "--config", str(config)])
    try:
        page.wait_for_selector("#runs input", timeout=60_000)
        page.locator("#runs input").first.check()
        page.wait_for_selector("figure[data-chart=Score] path.line", timeout=20_000)
        points = "document.querySelector('figure[data-chart=Score] path.line').getAttribute('d').split('L').length"
        at_first = page.evaluate(points)
        page.wait_for_function(f"first => {points} > first", arg=at_first, timeout=60_000)
        assert run.wait(200) == 0
        page.wait_for_selector("#runs .state:has-text('finished')", timeout=20_000)
        page.wait_for_selector("#runs .facts:has-text('step 200/200')", timeout=20_000)
        assert page.locator("figure[data-chart='Explained variance']").count() == 1
    finally:
        run.kill()


def test_the_page_is_usable_by_keyboard(make_run, open_page):
    make_run("a")
    page = open_page()
    page.wait_for_selector("#runs input")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips the list
    assert page.evaluate("document.activeElement.id") in ("main", "")
    page.focus("#runs input")
    page.keyboard.press("Space")
    page.wait_for_selector("#nothing:not([hidden])")
    assert page.evaluate("document.activeElement.dataset.run") == "a"


def test_200_runs_of_5000_steps_stay_quick(open_page, tmp_path, capsys):
    """First paint, and the first charts; the figures are printed, and no time is tested."""
    names = [f"metric/{i}" for i in range(38)]
    lines = "".join(
        json.dumps(
            {"step": s, "objective/score": s % 7, "objective/kl": s / 999, "time/step": 2.0, **dict.fromkeys(names, s)}
        )
        + "\n"
        for s in range(1, 5001)
    )
    config = yaml.safe_dump({"ppo": {"total_episodes": 40_000, "rollout_batch_size": 8}})
    for i in range(200):
        folder = tmp_path / "runs" / f"run-{i}"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.jsonl").write_text(lines)
    start = time.perf_counter()
    page = open_page()
    page.wait_for_selector("#runs input")
    listed = time.perf_counter() - start
    page.wait_for_selector("figure[data-chart=Score]")
    drawn = time.perf_counter() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    assert page.locator("#runs li").count() == 200
    with capsys.disabled():
        print(
            f"\n200 runs of 5,000 steps: first paint {paint:.2f} s, list {listed:.2f} s, four runs drawn {drawn:.2f} s"
        )


def test_evaluations_stand_side_by_side_with_intervals(make_run, open_page):
    make_run("a")
    folder = make_run("b")
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    best = {"step": 15, "score": 2.5, "score_low": 2.25, "score_high": 2.75, "kl": 1.0, "best": True}
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [rows[0], best, rows[1]]))
    page = open_page()
    page.wait_for_selector("#measures td")
    columns = {"b, step 15": "2.50 2.25 to 2.75 start 0", "a, step 30": "1.00 0.900 to 1.10 start 0"}
    headings = [text.strip() for text in page.locator("#measures thead th").all_inner_texts()][1:]
    assert set(headings) == set(columns)
    measures = {row.split()[0]: row for row in page.locator("#measures tbody tr").all_inner_texts()}
    assert list(measures) == ["score", "kl"]  # neither steps nor the mark of the best
    assert " ".join(measures["score"].split()) == "score " + " ".join(columns[heading] for heading in headings)


def test_answers_to_different_prompts_are_not_put_together(make_run, open_page, expect):
    """Held-out prompts of different data have the same numbers."""
    make_run("a")
    folder = make_run("b")
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows[1::2]:
        row["prompt"] = f"another {row['index']}"
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = open_page()
    page.wait_for_selector(".sample")
    expect(page.locator("#shown")).to_have_text("10 of 18 prompts")
    blocks = page.locator(".sample")
    assert [blocks.nth(i).locator(".side").count() for i in range(3)] == [2, 1, 1]


def test_one_prompt_over_time_is_the_one_that_was_clicked(make_run, open_page, expect):
    """Also where another chosen run has another prompt under the same number, and after the address is opened again."""
    make_run("a")
    folder = make_run("b")
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace('"prompt": "prompt', '"prompt": "another'))
    page = open_page("#?run=a&run=b&search=another+3")
    page.wait_for_selector(".sample")
    page.get_by_role("button", name="Over time").click()
    for _ in range(2):
        expect(page.locator("#shown")).to_have_text("One prompt at 2 evaluations")
        assert page.locator(".sample > .text").inner_text() == "another 3"
        page.reload()


def test_the_list_counts_the_warnings_that_health_shows(make_run, open_page, expect):
    """Rows of runs from before warnings were logged do not name them."""
    folder = make_run("a")
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) | {"objective/kl": 50.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = open_page()
    page.wait_for_selector(".warning")
    count = page.locator(".warning").count()
    expect(page.locator("#runs .warned")).to_have_text(f", {count} warning{'s' if count > 1 else ''}")
