"""The coordinating centre's own file, `centre.yaml`, and the programs that it describes.

    front (nginx)  TLS with client certificates; passes on /v1/fleet/* and /health, nothing else
    superlink      Flower's server on loopback, with a database, so that a run outlives it
    superexec      starts the ServerApp of a run in a process of its own

Whatever else the SuperLink offers (starting runs, handing out tasks) is reached from this machine alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from deploy.documents import Document, load_document
from deploy.errors import Problem
from deploy.network.front import FrontSection, front_program
from deploy.network.loopback import HOST, Pair, loopback_pair
from deploy.network.probes import http_health
from deploy.network.programs import Program, environment, flower, secret_file
from deploy.overrides import apply_overrides
from deploy.problems import at
from deploy.sections import STRICT, Location, Name
from deploy.validation import validate_document

Port = Annotated[int, Field(ge=1, le=65535)]


class CentreConfig(BaseModel):
    """Everything that the coordinating centre decides itself; built by `load_centre`.

    Attributes:
        name: Of the federation, for people.
        folder: Of database, secrets and logs; relative paths count from the folder of the file.
        port: Where the SuperLink listens on 127.0.0.1.
        sites: Site -> public key (OpenSSH, ECDSA) of its SuperNode: who may take part, and under which name.
        front: How hospitals reach it; null for sites on this machine alone, a rehearsal.
    """

    model_config = STRICT
    name: Name
    folder: Location
    port: Port = 18100
    sites: Annotated[dict[Name, Location], Field(min_length=1)]
    front: FrontSection | None


def load_centre(path: Path | str, overrides: Sequence[str] = ()) -> CentreConfig:
    """Return what a centre's file says.

    Args:
        path: A YAML file.
        overrides: `key=value` each; the value is YAML.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document, problems = apply_overrides(load_document(path), overrides)
    return validate_document(document, CentreConfig, check, folder=Path(path).parent, problems=problems)


def check(sections: Mapping[str, Any], document: Document) -> list[Problem]:
    """Return every problem between fields of the given sections, each valid by itself."""
    return [problem for rule in (_keys, _ports) for problem in rule(sections, document)]


def _keys(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """A key stands for one site: two names for it would count one hospital twice."""
    seen: dict[str, str] = {}
    for site, path in (sections.get("sites") or {}).items():
        if path in seen:
            yield at(
                document,
                ("sites", site),
                f"is the key of `{seen[path]}`; give each site the key that it sent",
            )
        seen.setdefault(path, site)


def _ports(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """SuperLink and front listen at two ports."""
    front, port = sections.get("front"), sections.get("port")
    if front is not None and front.port == port:
        yield at(document, ("front", "port"), "is `port`, where the SuperLink listens; give another")


@dataclass(frozen=True, kw_only=True)
class CentreFiles:
    """Where a centre's programs keep what is theirs.

    Attributes:
        folder: Everything below.
        pair: TLS of the SuperLink on loopback.
        secret: What a superexec shows to the SuperLink.
    """

    folder: Path
    pair: Pair
    secret: Path

    @property
    def command_line(self) -> Path:
        """Return Flower's folder for its command line, which has to know where the SuperLink is."""
        return self.folder / "command-line"

    @property
    def runs(self) -> Path:
        """Return the folder of results."""
        return self.folder / "runs"


def centre_files(config: CentreConfig) -> CentreFiles:
    """Return the files of a centre, made if they are not there yet."""
    folder = Path(config.folder)
    for each in (folder, folder / "command-line", folder / "runs"):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = CentreFiles(
        folder=folder,
        pair=loopback_pair(folder / "loopback"),
        secret=secret_file(folder / "superexec.secret"),
    )
    address = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "{HOST}:{config.port}"\nroot-certificates = "{files.pair.authority}"\n'
    )
    (files.command_line / "config.toml").write_text(address)
    return files


CONNECTION = "centre"
"""What Flower's command line calls the SuperLink."""


def centre_programs(config: CentreConfig, files: CentreFiles) -> list[Program]:
    """Return a centre's programs, in the order in which they start."""
    pair, link = files.pair, f"{HOST}:{config.port}"
    superlink = Program(
        name="superlink",
        argv=(
            flower("flower-superlink"),
            *("--ssl-ca-certfile", str(pair.authority)),
            *("--ssl-certfile", str(pair.certificate), "--ssl-keyfile", str(pair.key)),
            "--enable-supernode-auth",
            *("--database", str(files.folder / "superlink.db")),
            *("--host", HOST, "--port", str(config.port)),
            *("--isolation", "process", "--superexec-auth-secret-file", str(files.secret)),
            "--disable-runtime-dependency-installation",
        ),
        environment=environment(files.folder / "superlink"),
        ready=http_health(config.port, pair.authority),
    )
    superexec = Program(
        name="superexec",
        argv=(
            flower("flower-superexec"),
            *("--root-certificates", str(pair.authority), "--runtime-api-address", link),
            *("--superexec-auth-secret-file", str(files.secret)),
        ),
        environment=environment(files.folder / "superexec"),
    )
    programs = [superlink, superexec]
    if config.front is not None:
        programs.append(front_program(config.front, config.port, pair, files.folder / "front"))
    return programs
