"""Standard output and standard error, and what happens when they cannot be written."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from imgtool.cli.visible import visible
from imgtool.model.errors import FailedError

BROKEN_PIPE = 141  # exit code: 128 + SIGPIPE
_STEERING = (*range(0x7F, 0xA0), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))


def prepare() -> None:
    """Make the three standard streams usable, whatever they are closed to or encode.

    A closed one becomes /dev/null: else the next file opened would be mistaken for it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.dup(1), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.dup(2), "w")
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def write(text: str) -> None:
    """Print text as it is, now. Raises FailedError; BrokenPipeError where the reader has gone."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise _failed(error) from error


def write_xml(xml: bytes) -> None:
    """Print a document byte by byte; on a terminal, what would steer it as character references.

    Raises as `write` does.
    """
    if sys.stdout.isatty():
        text = xml.decode("utf-8", "backslashreplace")
        text = text.translate({code: f"&#x{code:x};" for code in _STEERING})
        write(text if text.endswith("\n") else f"{text}\n")
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(xml)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _failed(error) from error


def complain(text: str) -> None:
    """Print lines for a person to stderr, safe to show. If nobody can read them, so be it."""
    with suppress(OSError):
        print(visible(text), file=sys.stderr, flush=True)


def settle(code: int) -> int:
    """Flush both streams for good: Python's own flush at exit would print a traceback.

    What cannot be written is dropped. Returns `code`, or if that is 0, what the flush makes of it.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            code = code or (BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1)
            with suppress(OSError, ValueError):  # a stream of a test has no number
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
    return code


def _failed(error: OSError) -> OSError | FailedError:
    if isinstance(error, BrokenPipeError):
        return error
    return FailedError(
        f"standard output: {error.strerror or error}; the work itself is done",
        remedy="send the output where there is space for it",
    )
