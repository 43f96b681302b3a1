"""A hospital's own file, `site.yaml`: its data, its ledger, its keys and its policy -> one frozen `SiteConfig`.

Written and kept at the hospital; nothing in it comes from a server. Read as strictly as an experiment: every
problem at once, with line, key, value, rule and the nearest valid name. The policy has no defaults but "no model"
and "no metric": a file without one, or with a wrong one, is no `SiteConfig`, and without that nothing runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from deploy.connection import ConnectionSection, connection_problems
from deploy.documents import Document, Key, load_document
from deploy.errors import Problem
from deploy.overrides import apply_overrides
from deploy.problems import at
from deploy.sections import STRICT, Count, Location, Name, Positive, Share
from deploy.sources import (
    AbideData,
    Data,
    DicomData,
    DicomSite,
    NiftiData,
    NiftiSite,
    PhantomData,
    TableData,
    TableSite,
    ToyData,
)
from deploy.validation import schema_of, validate_document
from privacy.errors import PlanError
from privacy.filters import MAX_ORDER, MIN_ORDER, FixedPlan, RenyiFilter, choose_order
from privacy.policy import Cap, Policy
from privacy.releases import MAX_STEPS, Neighbouring, Release, Sampler
from vae.errors import VaeError

_HEX = re.compile(r"[0-9a-f]{64}")


def _require_hex(text: str) -> str:
    """Return a text of 64 hexadecimal digits."""
    if not _HEX.fullmatch(text):
        raise ValueError("must be 64 hexadecimal digits in lower case")
    return text


Hex = Annotated[str, AfterValidator(_require_hex), Field(json_schema_extra={"pattern": f"^{_HEX.pattern}$"})]
Delta = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(gt=0, le=1)]
Order = Annotated[int, Field(ge=MIN_ORDER, le=MAX_ORDER)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]


class NiftiHere(BaseModel):
    """This hospital's BIDS folder, or table of NIfTI paths, and the share of patients held out to judge on."""

    model_config = STRICT
    kind: Literal["nifti"] = "nifti"
    held_out: Share = 0.3
    source: NiftiSite


class DicomHere(BaseModel):
    """This hospital's folder of DICOM series, and the share of patients held out to judge on."""

    model_config = STRICT
    kind: Literal["dicom"] = "dicom"
    held_out: Share = 0.3
    source: DicomSite


class TableHere(BaseModel):
    """This hospital's table, and the share of patients held out to judge on."""

    model_config = STRICT
    kind: Literal["table"] = "table"
    held_out: Share = 0.3
    source: TableSite


DataHere = Annotated[
    NiftiHere | DicomHere | TableHere | ToyData | PhantomData | AbideData, Field(discriminator="kind")
]


class CapSection(BaseModel):
    """Most that may be spent on one patient."""

    model_config = STRICT
    epsilon: Positive
    delta: Delta


class PolicySection(BaseModel):
    """What this hospital allows; see `privacy.policy.Policy` for every field."""

    model_config = STRICT
    lifetime: CapSection
    per_run: CapSection
    min_noise_multiplier: Positive
    max_sampling_probability: Probability
    max_steps_per_round: Steps
    max_grad_norm: Positive
    max_records_per_patient: Count
    unit: Literal["patient", "record"]
    randomness: Literal["os", "seeded"]
    min_patients: Count
    patients_bound: Count
    models: tuple[Hex, ...] | Literal["any"] = ()
    metrics: dict[Name, Positive] = {}
    min_sites: Count
    max_runtime_s: Positive

    def to_policy(self) -> Policy:
        """Return the policy.

        Raises:
            PlanError: fields contradict each other; names every problem.
        """
        simple = self.model_dump(exclude={"lifetime", "per_run", "models"})
        return Policy(
            **simple,
            lifetime=Cap(epsilon=self.lifetime.epsilon, delta=self.lifetime.delta),
            per_run=Cap(epsilon=self.per_run.epsilon, delta=self.per_run.delta),
            models="any" if self.models == "any" else frozenset(self.models),
        )


class ReleaseSection(BaseModel):
    """One release of a fixed plan; see `privacy.releases.Release`."""

    model_config = STRICT
    sampling_probability: Probability
    noise_multiplier: Positive
    steps: Steps
    sampler: Sampler = "poisson"
    neighbouring: Neighbouring = "add_remove"


class RenyiRule(BaseModel):
    """Jobs may be chosen after seeing earlier results: a filter at one order, fixed when the ledger begins.

    Attributes:
        order: Of the Rényi divergence; null chooses one from the lifetime cap.
    """

    model_config = STRICT
    kind: Literal["renyi-filter"] = "renyi-filter"
    order: Order | None = None

    def to_filter(self, cap: Cap) -> RenyiFilter:
        """Return the filter that keeps to a cap."""
        order = self.order or choose_order(epsilon=cap.epsilon, delta=cap.delta)
        return RenyiFilter(epsilon=cap.epsilon, delta=cap.delta, order=order)


class FixedRule(BaseModel):
    """Everything is written down before the first result is seen, which buys the tighter accountant.

    Attributes:
        schedule: Everything that may ever be released, in order.
    """

    model_config = STRICT
    kind: Literal["fixed-plan"] = "fixed-plan"
    schedule: Annotated[tuple[ReleaseSection, ...], Field(min_length=1)]

    def to_filter(self, cap: Cap) -> FixedPlan:
        """Return the schedule that keeps to a cap."""
        schedule = tuple(Release(**item.model_dump()) for item in self.schedule)
        return FixedPlan(schedule=schedule, epsilon=cap.epsilon, delta=cap.delta)


class TcpSection(BaseModel):
    """Where the agent listens for a SuperNode on another machine of the hospital.

    Attributes:
        host: Address of this machine to listen at.
        port: Port.
        key: PEM private key of the agent.
        certificate: PEM chain of the agent.
        authority: PEM certificates that issue the relay's certificate.
    """

    model_config = STRICT
    host: Annotated[str, Field(min_length=1)]
    port: Annotated[int, Field(ge=1, le=65535)]
    key: Location
    certificate: Location
    authority: Location


class AgentSection(BaseModel):
    """The hospital's agent, `python -m deploy agent`; either `socket` or `tcp` says where it listens.

    Attributes:
        folder: Where it keeps stored updates, local parameters, diary and prepared records.
        socket: Path of its Unix socket.
        group: Group that may connect to the socket besides its owner, such as that of the SuperNode.
        tcp: Instead of a socket.
        device: Where it trains.
        seed: Of all randomness, for rehearsals with made-up data: goes with `policy.randomness: seeded` alone, and
            nothing is private then.
    """

    model_config = STRICT
    folder: Location
    socket: Location | None = None
    group: Name | None = None
    tcp: TcpSection | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class NodeSection(BaseModel):
    """How `join` runs Flower's SuperNode beside the agent.

    Attributes:
        folder: Of its programs: secrets among them, Flower's own folders, logs.
        port: Where the SuperNode listens on 127.0.0.1 for the program that starts ClientApps.
        relay_port: Where nginx listens on 127.0.0.1 for the SuperNode, if `connection` has a certificate.
    """

    model_config = STRICT
    folder: Location
    port: Annotated[int, Field(ge=1, le=65535)] = 9094
    relay_port: Annotated[int, Field(ge=1, le=65535)] = 9095


class SiteConfig(BaseModel):
    """Everything that a hospital decides itself; built by `load_site`.

    Attributes:
        site: Name in the federation.
        dataset: Name of this group of patients; the ledger belongs to it, not to a study.
        data: Where it lies; tells its kind by `kind`. `toy`, `phantom` and `abide` are for trying out.
        ledger: The SQLite file; relative paths count from the folder of the file, here and below.
        salt: File of the secret that makes pseudonyms of patient identifiers.
        key: The site's Ed25519 private key (PEM).
        approvers: Ed25519 public keys of those who may raise the cap together (two are needed).
        rule: When more may be spent.
        connection: How the coordinating centre is reached; null before the hospital joins one.
        policy: What is allowed. Required: without a policy nothing runs.
        agent: How the agent runs; needed by it alone.
        node: How the SuperNode runs; needed by `join` alone.
    """

    model_config = STRICT
    site: Name
    dataset: Name
    data: DataHere
    ledger: Location
    salt: Location
    key: Location
    approvers: tuple[Hex, ...] = ()
    rule: Annotated[RenyiRule | FixedRule, Field(discriminator="kind")] = RenyiRule()
    connection: ConnectionSection | None = None
    policy: PolicySection
    agent: AgentSection | None = None
    node: NodeSection | None = None

    @property
    def is_rehearsal(self) -> bool:
        """Return whether the agent draws all noise from a seed, so that nothing it does is private."""
        return self.agent is not None and self.agent.seed is not None

    def to_policy(self) -> Policy:
        """Return the policy."""
        return self.policy.to_policy()

    def to_filter(self) -> RenyiFilter | FixedPlan:
        """Return what decides whether more may be spent in the lifetime of the data set."""
        return self.rule.to_filter(self.to_policy().lifetime)

    def study_data(self) -> Data:
        """Return the data as an experiment's section that has this site (of own data: this site alone)."""
        data = self.data
        if isinstance(data, NiftiHere):
            return NiftiData(held_out=data.held_out, sites={self.site: data.source})
        if isinstance(data, DicomHere):
            return DicomData(held_out=data.held_out, sites={self.site: data.source})
        if isinstance(data, TableHere):
            return TableData(held_out=data.held_out, sites={self.site: data.source})
        return data


def load_site(path: Path | str, overrides: Sequence[str] = ()) -> SiteConfig:
    """Return what a hospital's file says.

    Args:
        path: A YAML file.
        overrides: `key=value` each, such as `policy.min_sites=5`; the value is YAML.

    Raises:
        ConfigError: with every problem of the file and the overrides.
    """
    document, problems = apply_overrides(load_document(path), overrides)
    return validate_document(document, SiteConfig, check, folder=Path(path).parent, problems=problems)


def site_schema() -> dict[str, Any]:
    """Return the JSON Schema of a hospital's file, for editors."""
    return schema_of(SiteConfig)


def check(sections: Mapping[str, Any], document: Document) -> list[Problem]:
    """Return every problem between fields of the given sections, each valid by itself."""
    rules = (_data, _virtual_site, _files, _approvers, connection_problems, _policy, _agent, _node)
    return [problem for rule in rules for problem in rule(sections, document)]


def _data(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """The data section builds what it describes."""
    data = sections.get("data")
    if data is None:
        return
    path: Key = ("data", "source") if hasattr(data, "source") else ("data",)
    build: Callable[[], object] = getattr(data, "source", data).to_spec
    try:
        build()
    except (VaeError, ValueError) as error:
        yield at(document, path, str(error), show_value=False)


def _virtual_site(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """A site with data that the software has itself, or makes up, is one of theirs."""
    data, site = sections.get("data"), sections.get("site")
    if (
        isinstance(data, ToyData | PhantomData | AbideData)
        and site is not None
        and site not in data.site_names
    ):
        names = data.site_names
        rule = f"{data.kind} data are made for {names[0]} to {names[-1]}; take one of those names"
        yield at(document, ("site",), rule, choices=names)


def _files(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """Ledger, salt and key are three files."""
    seen: dict[str, str] = {}
    for name in ("ledger", "salt", "key"):
        path = sections.get(name)
        if path is not None and path in seen:
            yield at(document, (name,), f"is the same file as `{seen[path]}`; give it one of its own")
        elif path is not None:
            seen[path] = name


def _approvers(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """Each approver is named once: one person must not count as two."""
    approvers = sections.get("approvers") or ()
    for index, key in enumerate(approvers):
        if key in approvers[:index]:
            first = approvers.index(key)
            yield at(document, ("approvers", index), f"is the key of approvers[{first}]; remove one of them")


def _policy(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """The policy keeps what its own module demands."""
    section = sections.get("policy")
    if section is None:
        return
    try:
        section.to_policy()
    except PlanError as error:
        for problem in error.problems:
            name, _, rule = problem.partition(" ")
            yield at(document, ("policy", *name.split(".")), rule)


def _agent(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """The agent listens at one place, and draws from a seed only where no privacy is claimed."""
    agent, policy = sections.get("agent"), sections.get("policy")
    if agent is None:
        return
    if (agent.socket is None) == (agent.tcp is None):
        yield at(document, ("agent",), "needs either `socket` or `tcp`, where it listens")
    if agent.group is not None and agent.socket is None:
        yield at(document, ("agent", "group"), "is of a `socket`; remove it, or give one")
    if agent.seed is not None and policy is not None and policy.randomness != "seeded":
        rule = "goes with policy.randomness: seeded, where nothing is private; remove it"
        yield at(document, ("agent", "seed"), rule)


def _node(sections: Mapping[str, Any], document: Document) -> Iterator[Problem]:
    """SuperNode and relay listen at two ports."""
    node = sections.get("node")
    if node is not None and node.port == node.relay_port:
        yield at(document, ("node", "relay_port"), "is `node.port`; give each a port of its own")
