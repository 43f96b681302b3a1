"""What is asked of a SuperLink through Flower's own command line: register sites, start, list and stop runs.

`flwr run` ends with 0 whatever becomes of the run, so its state is asked for until it has ended.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.errors import DeployError
from deploy.network.centre import CONNECTION, CentreFiles
from deploy.network.programs import environment, flower
from vae.data.durable import write_atomically

_TIMEOUT_S = 120.0
_NOBODY = "Connection to the SuperLink is unavailable"
_LOOK_S, _FIRST_PAUSE_S, _LAST_PAUSE_S = 0.2, 1.0, 10.0


class SuperLinkError(DeployError):
    """The SuperLink does not do what it was asked for."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """A run as the SuperLink lists it.

    Attributes:
        run_id: Flower's number.
        status: `pending`, `starting`, `running`, or `finished:` and how.
        details: What Flower says of it.
    """

    run_id: str
    status: str
    details: str

    @property
    def has_ended(self) -> bool:
        """Return whether nothing more will come of it."""
        return self.status.startswith("finished")


class CommandLine:
    """Flower's command line, told where the SuperLink of a centre is.

    Args:
        files: Of the centre.
    """

    def __init__(self, files: CentreFiles) -> None:
        self._files = files

    def register(self, sites: Mapping[str, Path]) -> dict[str, str]:
        """Have the SuperLink know each site's key under its name, and no other, and return site -> node id.

        Args:
            sites: Site -> public key of its SuperNode.

        Raises:
            SuperLinkError: it does not answer, or a key cannot be used.
        """
        book, known = self._book, self._known()
        digests = {site: hashlib.sha256(file.read_bytes()).hexdigest() for site, file in sites.items()}
        for site in [name for name, entry in known.items() if digests.get(name) != entry["key"]]:
            self._ask("supernode", "unregister", known[site]["node"], CONNECTION)
            del known[site]
            _write(book, known)
        for site, file in sites.items():
            if site not in known:
                answer = self._ask("supernode", "register", str(file), CONNECTION, "--name", site)
                known[site] = {"node": str(answer["node-id"]), "key": digests[site]}
                _write(book, known)
        return self.registered()

    def registered(self) -> dict[str, str]:
        """Return site -> node id, of those that are registered."""
        return {site: entry["node"] for site, entry in self._known().items()}

    @property
    def _book(self) -> Path:
        """Return the file that says which node is which site's."""
        return self._files.folder / "registered.json"

    def _known(self) -> dict[str, dict[str, str]]:
        """Return site -> node id and digest of its key."""
        known: dict[str, dict[str, str]] = json.loads(self._book.read_text()) if self._book.is_file() else {}
        return known

    def nodes(self) -> dict[str, str]:
        """Return node id -> `online`, `offline` or `registered`."""
        listed = self._ask("supernode", "list", CONNECTION)["nodes"]
        return {str(node["node-id"]): str(node["status"]) for node in listed}

    def start(self, bundle: Path, settings: Mapping[str, str]) -> str:
        """Start a run, and return its id.

        Args:
            bundle: Folder of the code, with its `pyproject.toml`.
            settings: Run configuration.
        """
        pairs = " ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
        return str(self._ask("run", str(bundle), CONNECTION, "--run-config", pairs)["run-id"])

    def runs(self) -> list[RunState]:
        """Return every run that the SuperLink knows."""
        return [
            RunState(run_id=str(run["run-id"]), status=str(run["status"]), details=str(run["status-details"]))
            for run in self._ask("ls", CONNECTION)["runs"]
        ]

    def run(self, run_id: str) -> RunState:
        """Return one run.

        Raises:
            SuperLinkError: the SuperLink does not know it.
        """
        for each in self.runs():
            if each.run_id == run_id:
                return each
        raise SuperLinkError(f"run {run_id}: the SuperLink does not know it; see `python -m deploy status`")

    def stop(self, run_id: str) -> None:
        """Stop a run; what sites have spent on its round stays spent."""
        self._ask("stop", run_id, CONNECTION)

    def log(self, run_id: str) -> str:
        """Return what the run has logged so far."""
        return self._call("log", run_id, CONNECTION, "--show").stdout

    def wait(
        self, run_id: str, observe: Callable[[RunState], None], has_told: Callable[[], bool]
    ) -> RunState:
        """Wait until a run has ended.

        Each question starts a process, which takes as much of a core as a small model's training: it is asked seldom.

        Args:
            run_id: Which.
            observe: Told at each change.
            has_told: Returns whether the run has left its outcome: then it is about to end, and is asked at once.
        """
        last, pause_s = "", _FIRST_PAUSE_S
        while True:
            state = self.run(run_id)
            if state.status != last:
                observe(state)
                last = state.status
            if state.has_ended:
                return state
            again = time.monotonic() + pause_s
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            time.sleep(_LOOK_S)
            while time.monotonic() < again and not has_told():
                time.sleep(_LOOK_S)

    def _ask(self, *words: str) -> dict[str, Any]:
        """Return the answer to a command, as JSON.

        Raises:
            SuperLinkError: it failed.
        """
        done = self._call(*words, "--format", "json")
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise SuperLinkError(f"flwr {words[0]}: {_last(done.stdout + done.stderr)}") from None
        if not answer.get("success"):
            said = _last(str(answer.get("error-message")))
            if _NOBODY in said:
                said = "the SuperLink of this centre does not answer; start it: `python -m deploy serve`"
            raise SuperLinkError(f"flwr {words[0]}: {said}")
        return answer

    def _call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line."""
        try:
            return subprocess.run(
                [flower("flwr"), *words],
                env=environment(self._files.command_line),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SuperLinkError(
                f"flwr {words[0]}: no answer within {_TIMEOUT_S:.0f} s; is it running?"
            ) from None


def _last(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no answer"


def _write(book: Path, known: Mapping[str, Mapping[str, str]]) -> None:
    """Keep which node is which site's."""
    write_atomically(book, json.dumps(known, indent=2).encode())
