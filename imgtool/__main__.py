"""The command `imgtool`, and `python -m imgtool`: as little as can be between exec and the work."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line in `sys.argv` and return its exit code.

    Ctrl-C prints no traceback from the first line on; before that, Python and the script that
    pip wrote load for some milliseconds that no program of Python's can change.
    """
    try:
        return _version() if sys.argv[1:] == ["--version"] else _command_line()
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT


def _command_line() -> int:
    import signal

    def on_interrupt(action: signal._HANDLER) -> None:
        # Who ignores SIGINT, as nohup and `&` do for their children, means it.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, action)

    # Nothing has been begun: die at once, as any command does. An exception could surface
    # anywhere inside the libraries that are being loaded, and be printed there.
    on_interrupt(signal.SIG_DFL)
    try:
        from imgtool.cli.main import main
    except ImportError as error:
        sys.stderr.write(f"imgtool: the installation is incomplete: {error}\n")
        sys.stderr.write("remedy: pip install --force-reinstall imgtool\n")
        return 1
    try:
        on_interrupt(signal.default_int_handler)
        return main(sys.argv[1:])
    finally:
        on_interrupt(signal.SIG_DFL)  # done; Python's own clean-up is nothing to wait for


def _version() -> int:
    """Print the version, having imported nothing that could be slow or broken."""
    from imgtool import __version__

    sys.stdout.write(f"imgtool {__version__}\n")
    return 0


if __name__ == "__main__":
    sys.exit(run())
