"""Where an agent listens: a socket of its own, or TCP with certificates at both ends."""

import os
import socket
import stat

import grpc
import pytest
import trustme

from client.agent import Agent
from client.contract import Description, FailureCode
from client.errors import SiteError
from client.relay import AgentService
from client.serving import MAX_SOCKET_PATH, MutualTls, ServingError, UnixSocket, serve
from tests.unit.client.test_agent import _Site


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "s"
    made.mkdir(mode=0o700)
    return made


def _serve(path, **options):
    return serve(Agent(_Site(), head=lambda: None), UnixSocket(path=path, **options))


def _described(target, **options):
    service = AgentService(target, patience_s=0.5, **options)
    try:
        return service.describe()
    finally:
        service.close()


def test_only_its_owner_may_open_the_socket(folder):
    served = _serve(folder / "a")
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o600
    assert _described(served.target) == Description(site="north")
    served.stop(0)


def test_a_group_may_open_it_where_one_is_named(folder):
    import grp

    served = _serve(folder / "a", group=grp.getgrgid(os.getgid()).gr_name)
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o660
    served.stop(0)


def test_a_group_that_is_not_there_is_refused(folder):
    with pytest.raises(ServingError, match="cannot listen"):
        _serve(folder / "a", group="no-such-group")


def test_a_socket_that_is_answered_at_is_not_taken_over(folder):
    served = _serve(folder / "a")
    with pytest.raises(ServingError, match="another agent answers"):
        _serve(folder / "a")
    assert _described(served.target) == Description(site="north")
    served.stop(0)


def test_a_socket_that_a_killed_agent_left_is_removed(folder):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(folder / "a"))
    served = _serve(folder / "a")
    assert _described(served.target) == Description(site="north")
    served.stop(0)


def test_a_file_in_its_place_is_left_alone(folder):
    (folder / "a").write_text("mine")
    with pytest.raises(ServingError, match="is no socket"):
        _serve(folder / "a")
    assert (folder / "a").read_text() == "mine"


def test_a_folder_that_anybody_may_write_to_is_refused(folder):
    folder.chmod(0o777)
    with pytest.raises(ServingError, match="chmod o-w"):
        _serve(folder / "a")


def test_a_folder_that_is_not_there_and_a_path_that_is_too_long_are_refused(folder):
    with pytest.raises(ServingError, match="no such folder"):
        _serve(folder / "none" / "a")
    with pytest.raises(ServingError, match=f"at most {MAX_SOCKET_PATH} bytes"):
        _serve(folder / ("a" * MAX_SOCKET_PATH))


def _tls(authority, *, host="localhost"):
    issued = authority.issue_cert(host)
    return issued.private_key_pem.bytes(), b"".join(pem.bytes() for pem in issued.cert_chain_pems)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def tcp(authority):
    key, certificate = _tls(authority)
    served = serve(
        Agent(_Site(), head=lambda: None),
        MutualTls(
            host="localhost", port=0, key=key, certificate=certificate, authority=authority.cert_pem.bytes()
        ),
    )
    yield served.target
    served.stop(0)


def test_a_relay_with_a_certificate_is_served(tcp, authority):
    key, certificate = _tls(authority, host="relay")
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, certificate)
    assert _described(tcp, credentials=credentials) == Description(site="north")


@pytest.mark.parametrize("whose", ["none", "other-authority"])
def test_a_relay_without_a_certificate_of_the_hospital_is_refused(tcp, authority, whose):
    pair = () if whose == "none" else _tls(trustme.CA(), host="relay")
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), *pair)
    with pytest.raises(SiteError) as refused:
        _described(tcp, credentials=credentials)
    assert refused.value.code is FailureCode.UNREACHABLE


def test_in_the_clear_nobody_is_served(tcp):
    with pytest.raises(SiteError):
        _described(tcp)
