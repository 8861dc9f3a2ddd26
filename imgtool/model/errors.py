"""Everything imgtool raises on purpose.

ImgtoolError
 +- FailedError        exit 1: tried, failed, nothing has changed
 |   +- QemuImgError       qemu-img said no, or could not be run
 |   +- StoreError         the store of domain XML failed
 +- BadRequestError    exit 2: usage or bad input, nothing was begun
 |   +- NotFoundError      no such domain, snapshot or disk
 |   +- ExistsError        a name, tag or path that is taken
 |   +- UnsupportedError   a disk or image that imgtool will not touch
 |   +- ChainError         a backing chain that cannot be trusted
 |   +- LossError          data would be lost, and nobody said that it may be
 |   +- XmlError           XML that is malformed, hostile or incomplete
 +- RefusedError       exit 3: somebody else is in the way, nothing has changed
 |   +- DomainActiveError  the domain is not plainly stopped
 |   +- DomainChangedError its XML is not the one that was surveyed
 |   +- ImageInUseError    QEMU or another imgtool has the image
 |   +- ImageChangedError  the image is not the one that was surveyed
 |   +- BusyError          another imgtool works on this domain
 +- PendingError       exit 4: a transaction waits for `imgtool recover`
 |   +- NotDurableError    the new XML is visible, and may not survive a power cut
 +- Interrupted        exit 128 + signal
"""

from __future__ import annotations

import signal


class ImgtoolError(Exception):
    """A sentence with the fact and the path, and a remedy. `exit_code` says what is true now."""

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    @property
    def type(self) -> str:
        """The stable name of this error in JSON."""
        return type(self).__name__


class FailedError(ImgtoolError):
    """The work was tried and failed; everything is as it was."""


class QemuImgError(FailedError):
    """qemu-img failed, was killed, ran out of time, or is not installed."""


class StoreError(FailedError):
    """The store could not read or write domain XML or snapshot metadata."""


class BadRequestError(ImgtoolError):
    """What was asked cannot be meant; nothing was begun."""

    exit_code = 2


class NotFoundError(BadRequestError):
    """No domain, snapshot or disk of that name."""


class ExistsError(BadRequestError):
    """A snapshot name, an internal tag or a path that is already there."""


class UnsupportedError(BadRequestError):
    """A kind of disk, image or request that imgtool will not touch, and why."""


class ChainError(BadRequestError):
    """A backing chain with a missing, unreadable, unrecorded or looping layer."""


class LossError(BadRequestError):
    """Data would be lost, and nobody said that it may be."""


class XmlError(BadRequestError):
    """XML that is malformed, hostile, too large, or lacks what is needed."""


class RefusedError(ImgtoolError):
    """Somebody else is in the way; everything is as it was."""

    exit_code = 3


class DomainActiveError(RefusedError):
    """The domain runs, is paused, or has a managed save image."""


class DomainChangedError(RefusedError):
    """The domain XML is not the one that the plan was made for."""


class ImageInUseError(RefusedError):
    """QEMU, or another imgtool, has the image open."""


class ImageChangedError(RefusedError):
    """The image is not the one that was surveyed."""


class BusyError(RefusedError):
    """Another imgtool works on this domain."""


class PendingError(ImgtoolError):
    """A transaction could neither be finished nor undone, and waits for `imgtool recover`."""

    exit_code = 4


class NotDurableError(PendingError):
    """The domain XML was replaced, but a sync failed: too late to go back, too early to finish."""


class Interrupted(ImgtoolError):
    """A signal asked to stop; the transaction was rolled back, or finished if past its pivot."""

    def __init__(self, signum: int, outcome: str) -> None:
        super().__init__(f"{signal.Signals(signum).name}: {outcome}")
        self.signum = signum
        self.exit_code = 128 + signum
