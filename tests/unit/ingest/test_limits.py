"""Connections fit into the limit of open files."""

import resource

import pytest

from worker import descriptors
from worker.ingest.limits import Limits, fit, fit_to_system


@pytest.mark.parametrize("max_files", [11_272, 11_271, 4_096, 1_024, 273, 10])
def test_limits_fit_into_the_open_files(max_files: int) -> None:
    fitted = fit(Limits(), max_files)
    assert fitted.max_connections >= 1
    assert fitted.max_unanswered >= 1
    assert fitted.descriptors <= max(max_files, 274)
    assert (fitted == Limits()) is (max_files >= Limits().descriptors)


def test_low_hard_limit_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(descriptors, "limits", lambda: (1_024, 1_024))
    assert fit_to_system(Limits()).max_connections == 564
    (line,) = caplog.messages
    assert line.startswith("at most 1024 files may be open and 10000 connections need 11272: ")
    assert "the HTTP port serves 564; raise the hard limit" in line


def test_soft_limit_is_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised = []
    monkeypatch.setattr(descriptors, "limits", lambda: (1_024, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: raised.append(limits[0]))
    assert fit_to_system(Limits()) == Limits()
    assert raised == [11_272]
    assert caplog.messages == []
