"""qemu-img for those who only make and look at images: half as dear as a transaction's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from imgtool.host.qemu_img import QUICK, TOOL, QemuImg, Watch
from imgtool.model.errors import QemuImgError


class PlainQemuImg(QemuImg):
    """The same subcommands and errors; what is running cannot be watched or cancelled.

    A transaction's child is a fork of this process, with threads that read from it, so that it
    can be stopped. Here nothing is forked: a test that looks at images does so all the time.
    """

    def run(
        self,
        *args: str | Path,
        timeout: float | None = QUICK,
        ok: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> str:
        """Run qemu-img with `args`, return its stdout. `timeout` in seconds, None for none."""
        assert watch is None, "a transaction's qemu-img tells how far it is"
        done = subprocess.run(
            [TOOL, *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
            timeout=timeout,
            check=False,
        )
        if done.returncode not in ok:
            said = " ".join(done.stderr.decode(errors="replace").split())
            raise QemuImgError(f"qemu-img {args[0]}: {said or f'ended with {done.returncode}'}")
        return done.stdout.decode(errors="surrogateescape")
