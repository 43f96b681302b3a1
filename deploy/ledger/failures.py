"""What goes wrong with a ledger, as a person at a terminal sees it: one line and an exit code, never a traceback.

    deploy.errors.DeployError
    ├── UsageError    a wrong argument, or a file that is not there, in the way, or of another kind
    ├── UnmetError    a rule of the ledger or of the policy forbids it; nothing was changed
    └── DamagedError  the file is not what was written, and no single entry is to blame

A line names the thing, the rule and the way out. A configuration with several problems takes one line for each.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import typer

from deploy.errors import ConfigError, DeployError, ExitCode

TRACEBACK_VARIABLE = "FEDERATED_VAE_TRACEBACK"
KEEP = "keep the file as it is, stop training on these patients, and compare it with the last export and kept heads"
"""What to do with a ledger that is not what was written."""

_LONGEST = 2000


class UsageError(DeployError):
    """What was asked for cannot be done: a wrong argument, or a file that is not there or in the way."""


class UnmetError(DeployError):
    """A rule of the ledger or of the policy forbids it; nothing was changed."""


class DamagedError(DeployError):
    """A file is not what was written, and no single entry is to blame."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """End with one line and an exit code of `deploy.errors.ExitCode` where a verb raises; may decorate it."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):  # `ledger show | head` is no failure of ours
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        typer.echo(one_line(error), err=True)
        raise typer.Exit(exit_code(error)) from None


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code that stands for an error."""
    from privacy.errors import PlanError, RefusedError, SigningError, TamperedError
    from vae.errors import VaeError

    if isinstance(error, UsageError | ConfigError | SigningError | PlanError):
        return ExitCode.CONFIGURATION
    if isinstance(error, UnmetError | DamagedError | TamperedError | RefusedError):
        return ExitCode.REFUSED_BY_PRIVACY
    return ExitCode.DATA_NOT_READY if isinstance(error, VaeError) else ExitCode.FAILED


def one_line(error: Exception) -> str:
    """Return what to print of an error, without anything in it that could steer a terminal."""
    from privacy.errors import PrivacyError, TamperedError
    from server.report.words import shown
    from vae.errors import VaeError

    if isinstance(error, ConfigError) and len(error.problems) > 1:
        return str(error)
    if isinstance(error, ConfigError):
        text = f"{error.source}: {error.problems[0]}"
    elif isinstance(error, TamperedError):
        text = f"entry {error.entry}: {error.problem}; the ledger is not what was written: {KEEP}"
    elif isinstance(error, OSError):
        text = (
            f"{error.filename or 'file'}: {error.strerror or error}; check the path, its rights and the disk"
        )
    elif isinstance(error, DeployError | PrivacyError | VaeError):
        text = str(error)
    else:
        text = (
            f"{type(error).__name__}: {error}; this is a defect of the software, not yours: report it with what "
            f"{TRACEBACK_VARIABLE}=1 shows"
        )
    return shown(" ".join(text.split()), _LONGEST)
