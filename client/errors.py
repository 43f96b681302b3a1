"""Errors of `client`.

SiteError                  a request that a site did not fulfil
└── (carries a `FailureCode`: all that leaves the site; the message stays)
"""

from __future__ import annotations

from client.contract import FailureCode


class SiteError(Exception):
    """A site did not fulfil a request.

    Attributes:
        code: What the server is told.
    """

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code = code
