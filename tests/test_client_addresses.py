"""What a caller may say where the servers are."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from longshort import errors
from longshort.addresses import parsed, resolved


@pytest.mark.parametrize(
    ("address", "addresses"),
    [
        ("localhost:1", ("localhost:1",)),
        ("[::1]:50051", ("[::1]:50051",)),
        ("a:1,b:2, c:3", ("a:1", "b:2", "c:3")),
        ("a:1,a:1", ("a:1",)),
        (["a:1", "b:2"], ("a:1", "b:2")),
        (("a:1",), ("a:1",)),
        ("unix:/run/longshort.sock", ("unix:/run/longshort.sock",)),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", ("ipv4:127.0.0.1:1", "127.0.0.1:2")),
        ("dns://1.1.1.1/replicas:1", ("dns://1.1.1.1/replicas:1",)),  # another name server: gRPC asks it
    ],
)
def test_addresses_are_one_or_several(address: Any, addresses: tuple[str, ...]):
    target = parsed(address)
    assert target.addresses == addresses
    assert not target.has_name
    assert target.channel_options == ()


def test_name_stands_in_for_its_addresses_until_they_are_known():
    target = parsed("dns:///longshort.example:50051")
    assert target.addresses == ("dns:///longshort.example:50051",)
    assert (target.host, target.port) == ("longshort.example", 50051)
    assert dict(target.channel_options)["grpc.default_authority"] == "longshort.example:50051"


@pytest.mark.parametrize(
    "address",
    ["", "localhost", "a:1,", ",", "a:1,b", "a:0", "a:99999", [], ["a:1", 5], 5, None, {"a:1"}, b"a:1"],
)
def test_what_is_no_address_is_refused_and_shown(address: Any):
    with pytest.raises(errors.InvalidRequest, match=r"^INVALID_OPTION: address is HOST:PORT"):
        parsed(address)


def test_answer_of_a_name_server_is_each_address_once_in_one_order():
    infos = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::2", 50051, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", 50051)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 50051)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", 50051)),
    ]
    assert resolved(infos) == ["10.0.0.1:50051", "10.0.0.2:50051", "[fd00::2]:50051"]
