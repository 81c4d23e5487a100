"""The target and the Host header of a request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Request as ParsedRequest

from worker.ingest.request import BadRequestError, Request, read_request


def _read(target: str, *hosts: str, protocol: str = "HTTP/1.1") -> Request:
    headers = Headers([("Host", host) for host in hosts])
    return read_request(ParsedRequest(target, headers, "GET", protocol), "127.0.0.1")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/raw?a=1&a=2&b", "/raw", {"a": ["1", "2"], "b": [""]}),
        ("/raw?a=b?c=d", "/raw", {"a": ["b?c=d"]}),
        ("//raw", "//raw", {}),
        ("/%2Fraw", "/%2Fraw", {}),
        ("http://A.example:80/raw?a=1", "/raw", {"a": ["1"]}),
        ("wss://a.example:80?a=1", "/", {"a": ["1"]}),
        ("HTTP://a.example:80", "/", {}),
    ],
)
def test_target_becomes_path_and_query(target: str, path: str, query: object) -> None:
    request = _read(target, "a.example:80")
    assert (request.path, request.query) == (path, query)


@pytest.mark.parametrize(
    "target",
    ["", "*", "raw", "?a=1", "a.example:443", "ftp://a.example/", "http:///raw", "/a\tb", "/\x7f"],
)
def test_other_targets_are_refused(target: str) -> None:
    with pytest.raises(BadRequestError, match="target"):
        _read(target, "a.example")


def test_host_is_required_once() -> None:
    assert _read("/", protocol="HTTP/1.0").path == "/"
    for hosts in [(), ("a", "a")]:
        with pytest.raises(BadRequestError, match="Host"):
            _read("/", *hosts)
    with pytest.raises(BadRequestError, match="same host"):
        _read("http://a/", "b")


@given(st.text(st.characters(max_codepoint=127)))
def test_any_target_is_read_or_refused(target: str) -> None:
    try:
        request = _read(target, "a")
    except BadRequestError:
        return
    assert request.path.startswith("/")
    assert all(value.isprintable() for value in request.target)
    assert request.query is not None
