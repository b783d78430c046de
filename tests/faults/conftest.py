"""The table at the end of `make test-faults`: what was tried, and whether it held."""

import pytest
from stages import stage

__all__ = ["stage"]


def pytest_terminal_summary(terminalreporter):
    """A line for each fault: the first line of the test's docstring, its case, and the outcome."""
    rows = []
    for outcome, word in (("passed", "held"), ("failed", "DID NOT HOLD"), ("skipped", "not tried")):
        for report in terminalreporter.getreports(outcome):
            tried = dict(getattr(report, "user_properties", ())).get("tried")  # a file that fails to import has none
            if tried is not None and (report.when == "call" or outcome != "passed"):
                rows.append((tried, word))
    if rows:
        width = max(len(tried) for tried, _ in rows)
        terminalreporter.section("faults")
        for tried, word in sorted(rows):
            terminalreporter.write_line(f"{tried:<{width}}  {word}")


@pytest.fixture(autouse=True)
def tried(request, record_property):
    """Note for the table what a test tries."""
    summary = request.function.__doc__.splitlines()[0].rstrip(".")
    case = request.node.callspec.id if hasattr(request.node, "callspec") else None
    record_property("tried", summary if case is None else f"{summary}: {case}")
