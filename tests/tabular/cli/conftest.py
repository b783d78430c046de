"""Fixtures of the command-line tests."""

import pytest

from tabular.cli.main import main


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    """Runs each test in an empty folder, on a wide screen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def cli(capsys):
    """Calls `tabular` with some words; returns the exit status, standard output and standard error."""

    def call(*argv):
        capsys.readouterr()
        try:
            status = main(argv)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call
