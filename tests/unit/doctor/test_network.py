"""Checks of the way to the server, on real sockets: name, port, firewall, proxy, and what the environment says."""

import socket
import time

import pytest

from deploy.doctor import network
from tests.support.doctors import (
    connect_proxy,
    connection,
    free_address,
    listening,
    look,
    only,
    silent,
    visit,
)


def at(folder, server, **more):
    return visit(folder, connection(folder, server, **more), timeout_s=1.0)


def test_a_name_is_looked_up(tmp_path):
    found = only(network.dns, at(tmp_path, "localhost:443"))
    assert found.severity == "ok"
    assert "127.0.0.1" in found.found


def test_a_name_that_is_not_there(tmp_path, monkeypatch):
    def nowhere(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    found = only(network.dns, at(tmp_path, "link.example:443"))
    assert found.severity == "error"
    assert "link.example cannot be looked up (there is no such name)" in found.found
    assert "`connection.server`" in found.fix
    found = only(network.dns, at(tmp_path, "link.example:443", proxy="http://proxy.example:3128"))
    assert "the proxy's name proxy.example" in found.found, "the server's name is the proxy's to look up"


def test_a_port_that_is_open_and_one_that_is_closed(tmp_path):
    with listening(silent) as server:
        assert only(network.tcp, at(tmp_path, server.address)).severity == "ok"
        assert server.had(1)
    closed = free_address()
    found = only(network.tcp, at(tmp_path, closed))
    assert found.severity == "error"
    assert f"{closed} refuses the connection" in found.found


def test_a_firewall_that_drops_everything(tmp_path, monkeypatch):
    def dropped(*_, **__):
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", dropped)
    found = only(network.tcp, at(tmp_path, "10.0.0.1:443"))
    assert "10.0.0.1:443 does not answer at all" in found.found
    assert "have outbound TCP to 10.0.0.1:443 allowed" in found.fix


def test_a_proxy_opens_the_way(tmp_path):
    with listening(silent) as server, listening(connect_proxy()) as proxy:
        found = only(network.tcp, at(tmp_path, server.address, proxy=f"http://{proxy.address}"))
        assert found.severity == "ok"
        assert f"through the proxy {proxy.address}" in found.found
        assert server.had(1)
        assert proxy.had(1)


@pytest.mark.parametrize(
    ("status", "words"),
    [("407 Proxy Authentication Required", "demands a name and password"), ("403 Forbidden", "answers 403 when asked")],
)  # fmt: skip
def test_a_proxy_that_does_not(tmp_path, status, words):
    with listening(silent) as server, listening(connect_proxy(status)) as proxy:
        found = only(network.tcp, at(tmp_path, server.address, proxy=f"http://{proxy.address}"))
        assert found.severity == "error"
        assert server.had(0)
        assert words in found.found


def test_what_is_no_proxy(tmp_path):
    def other(made):
        made.recv(4096)
        made.sendall(b"220 mail.example ESMTP\r\n\r\n")

    with listening(other) as proxy:
        found = only(network.tcp, at(tmp_path, "a:1", proxy=f"http://{proxy.address}"))
    assert "does not answer as an HTTP proxy does" in found.found


def test_a_proxy_that_never_speaks_is_given_up_in_time(tmp_path):
    with listening(silent) as proxy:
        start = time.monotonic()
        found = only(network.tcp, at(tmp_path, "a:1", proxy=f"http://{proxy.address}"))
    assert "says nothing when asked for a:1" in found.found
    assert 0.5 < time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("proxy", "environment", "severity", "words"),
    [
        (None, {}, "ok", "no proxy"),
        (None, {"HTTPS_PROXY": "http://p:3128"}, "warning", "HTTPS_PROXY sends Flower through a proxy"),
        (None, {"ALL_PROXY": "http://p:3128"}, "warning", "ALL_PROXY sends Flower through a proxy"),
        (None, {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "x,.example"}, "ok", "no proxy"),
        (None, {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "ink.example"}, "warning", "sends Flower"),
        (None, {"HTTPS_PROXY": "http://p:3128", "no_proxy": "*"}, "ok", "no proxy"),
        ("http://p:3128", {}, "warning", "HTTPS_PROXY is not set"),
        ("http://p:3128", {"https_proxy": "http://p:3128"}, "ok", "name the same proxy"),
        ("http://p:3128", {"HTTPS_PROXY": "p:3128/"}, "ok", "name the same proxy"),
        ("http://p:3128", {"HTTPS_PROXY": "http://q:3128"}, "warning", "names another proxy"),
        ("http://p:3128", {"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "link.example"}, "warning", "NO_PROXY excepts"),
    ],
)  # fmt: skip
def test_file_and_environment_name_the_same_proxy(tmp_path, proxy, environment, severity, words):
    there = visit(tmp_path, connection(tmp_path, "link.example:443", proxy=proxy), environment=environment)
    found = only(network.proxy, there)
    assert found.severity == severity
    assert words in found.found


def test_a_password_in_the_environment_is_not_printed(tmp_path):
    secret = {"HTTPS_PROXY": "http://me:hunter2@p:3128"}
    there = visit(tmp_path, connection(tmp_path, "a:1", proxy="http://p:3128"), environment=secret)
    assert "hunter2" not in str(look(network.proxy, there))
