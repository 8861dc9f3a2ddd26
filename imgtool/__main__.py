"""The command `imgtool`, and `python -m imgtool`: as little as can be between exec and the work."""

from __future__ import annotations

import signal
import sys


def run() -> int:
    """Run the command line in `sys.argv` and return its exit code.

    Until the command line is loaded nothing has been begun, so Ctrl-C just ends the process, as
    it does with any command that does not care; Python could only add a traceback.
    """
    if sys.argv[1:] == ["--version"]:
        return _version()
    _on_interrupt(signal.SIG_DFL)
    try:
        from imgtool.cli.main import main
    except ImportError as error:
        sys.stderr.write(f"imgtool: the installation is incomplete: {error}\n")
        sys.stderr.write("remedy: pip install --force-reinstall imgtool\n")
        return 1
    try:
        _on_interrupt(signal.default_int_handler)
        return main(sys.argv[1:])
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        _on_interrupt(signal.SIG_DFL)  # the work is done, and what is left need not be cleaned up


def _version() -> int:
    """Print the version, having imported nothing that could be slow or broken."""
    from imgtool import __version__

    sys.stdout.write(f"imgtool {__version__}\n")
    return 0


def _on_interrupt(action: signal._HANDLER) -> None:
    """Set what SIGINT does, unless the caller has it ignored, as nohup and `&` do."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, action)


if __name__ == "__main__":
    sys.exit(run())
