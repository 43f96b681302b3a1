"""What goes wrong with keys and certificates, as a person at a terminal sees it: one line and an exit code.

    deploy.errors.DeployError
    ├── InputError      a wrong argument, or a file that is not there, in the way, or of another kind   exit code 2
    ├── RequestError    a site's request that is not what `provision request` wrote                     exit code 2
    └── AuthorityError  the authority's register forbids it, or its folder is not what was written      exit code 1

A line names the thing, the rule and the way out. Whatever is refused here has written nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import typer

from deploy.errors import DeployError, ExitCode

TRACEBACK_VARIABLE = "FEDERATED_VAE_TRACEBACK"

_LONGEST = 1000


class InputError(DeployError):
    """What was asked for cannot be done: a wrong argument, or a file that is not there or in the way."""


class RequestError(DeployError):
    """A site's request is not what `provision request` wrote: damaged on the way, or made by somebody else."""


class AuthorityError(DeployError):
    """The register forbids it, or the authority's folder is not what was written."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """End with one line and an exit code of `deploy.errors.ExitCode` where a verb raises; may decorate it."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        typer.echo(one_line(error), err=True)
        raise typer.Exit(exit_code(error)) from None


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code that stands for an error."""
    from privacy.errors import SigningError

    is_input = isinstance(error, InputError | RequestError | SigningError)
    return ExitCode.CONFIGURATION if is_input else ExitCode.FAILED


def one_line(error: Exception) -> str:
    """Return what to print of an error, without anything in it that could steer a terminal."""
    from privacy.errors import SigningError
    from server.report.words import shown

    if isinstance(error, OSError):
        cause = error.strerror or str(error)
        text = f"{error.filename or 'file'}: {cause}; check the path, its rights and the disk"
    elif isinstance(error, DeployError | SigningError):
        text = str(error)
    else:
        text = (
            f"{type(error).__name__}: {error}; this is a defect of the software, not yours: report it with what "
            f"{TRACEBACK_VARIABLE}=1 shows"
        )
    return shown(" ".join(text.split()), _LONGEST)
