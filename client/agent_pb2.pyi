"""Types of what `make proto` writes from agent.proto; held against it by tests/unit/client/test_agent_proto.py."""

from typing import Any, Self

DESCRIPTOR: Any

class _Message:
    @classmethod
    def FromString(cls, data: bytes) -> Self: ...  # noqa: N802 - protobuf's name
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name

class DescribeRequest(_Message): ...

class DescribeReply(_Message):
    site: str
    version: int
    def __init__(self, *, site: str = "", version: int = 0) -> None: ...

class Begin(_Message):
    num_bytes: int
    sha256: bytes
    def __init__(self, *, num_bytes: int = 0, sha256: bytes = b"") -> None: ...

class Part(_Message):
    begin: Begin
    data: bytes
    def __init__(self, *, begin: Begin | None = None, data: bytes = b"") -> None: ...
    def WhichOneof(self, name: str) -> str | None: ...  # noqa: N802 - protobuf's name

class AuditRequest(_Message): ...

class AuditReply(_Message):
    head: str
    failure: str
    def __init__(self, *, head: str = "", failure: str = "") -> None: ...

class StatusRequest(_Message): ...

class StatusReply(_Message):
    version: int
    training: bool
    waiting: int
    def __init__(self, *, version: int = 0, training: bool = False, waiting: int = 0) -> None: ...
