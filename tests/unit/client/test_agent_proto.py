"""What protoc wrote is what agent.proto says, and so are the types beside it."""

import ast
import re
from pathlib import Path

import pytest

from client import agent_pb2

FOLDER = Path(agent_pb2.__file__).parent
PROTO = (FOLDER / "agent.proto").read_text()
TYPES = {
    "string": "str",
    "uint32": "int",
    "uint64": "int",
    "bytes": "bytes",
    "bool": "bool",
    "Begin": "Begin",
}


def _messages():
    """Return message -> [(type, field, number)] of the file."""
    found = re.findall(r"^message (\w+) \{(.*?)\n?\}\n(?=\n|$)", re.sub(r"//.*", "", PROTO), re.S | re.M)
    return {name: re.findall(r"(\w+) (\w+) = (\d+);", body) for name, body in found}


def test_messages_are_those_of_the_file():
    written = {
        name: [(field.name, str(field.number)) for field in message.fields]
        for name, message in agent_pb2.DESCRIPTOR.message_types_by_name.items()
    }
    assert written == {name: [field[1:] for field in fields] for name, fields in _messages().items()}
    assert len(written) == 8


def test_calls_are_those_of_the_file():
    service = agent_pb2.DESCRIPTOR.services_by_name["Agent"]
    calls = [
        (m.name, m.client_streaming, m.input_type.name, m.server_streaming, m.output_type.name)
        for m in service.methods
    ]
    declared = re.findall(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);", PROTO)
    assert calls == [(name, bool(a), ask, bool(b), reply) for name, a, ask, b, reply in declared]
    assert [call[0] for call in calls] == ["Describe", "Train", "Audit", "Status"]


@pytest.mark.parametrize("name", sorted(_messages()))
def test_types_are_those_of_the_file(name):
    stubs = ast.parse((FOLDER / "agent_pb2.pyi").read_text())
    (found,) = [node for node in stubs.body if isinstance(node, ast.ClassDef) and node.name == name]
    fields = {
        node.target.id: ast.unparse(node.annotation) for node in found.body if isinstance(node, ast.AnnAssign)
    }
    assert fields == {field: TYPES[kind] for kind, field, _ in _messages()[name]}
