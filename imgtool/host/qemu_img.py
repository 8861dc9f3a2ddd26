"""The only module that runs programs: qemu-img, by argument list, formats always given."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.model.errors import QemuImgError
from imgtool.model.image import Format, Qcow2Features
from imgtool.model.plan import Node

TOOL = "qemu-img"
QUICK = 60.0  # seconds; for commands that only touch metadata of bounded size
_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")
Watch = Callable[[float], None]
_SAFE_ENV = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD")


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `qemu-img check` said."""

    corruptions: int
    leaks: int  # clusters
    errors: int
    image_end: int | None  # bytes of the file that are in use; None where the format has no such


class QemuImg:
    """One method per subcommand. Any may raise QemuImgError; a half-made file may remain."""

    def __init__(self) -> None:
        self._running: dict[int, Any] = {}
        self._cancelled = False

    def run(
        self,
        *args: str | Path,
        timeout: float | None = QUICK,
        ok: Sequence[int] = (0,),
        watch: Watch | None = None,
    ) -> str:
        """Run qemu-img with `args`, return its stdout. `timeout` in seconds, None for none.

        `watch` is told the share that is done, 0.0 to 1.0, of a command that is given -p.
        """
        import sh

        try:
            command = sh.Command(TOOL)
        except sh.CommandNotFound as error:
            raise QemuImgError("qemu-img is not installed", remedy="install qemu-utils") from error
        if self._cancelled:
            raise QemuImgError(f"{args[0]}: cancelled")
        told: dict[str, Any] = {}
        if watch:  # and kept all the same: what `compare` has found stands behind its progress
            told = {"_out": _progress(watch), "_out_bufsize": 0, "_tee": True}
        process = command(
            *(os.fsencode(arg).decode("latin-1") for arg in args),
            _bg=True,
            _bg_exc=False,
            _tty_out=False,
            _encoding="latin-1",  # with the line above: any bytes that a file name may have
            _new_group=True,  # Ctrl-C is for us: we stop our children ourselves
            _return_cmd=True,
            _internal_bufsize=65536,
            _env={name: os.environ[name] for name in _SAFE_ENV if name in os.environ}
            | {"LC_ALL": "C.UTF-8"},
            _ok_code=list(ok),
            _close_fds=False,  # exec closes ours, but for the lock, see Files.lock
            **told,
        )
        self._running[id(process)] = process
        if self._cancelled:  # while it was being started
            _kill(process)
        return self._wait(process, str(args[0]), timeout)

    def cancel(self) -> None:
        """Kill what runs, refuse what comes. Safe in a signal handler of the main thread."""
        self._cancelled = True
        for process in tuple(self._running.values()):
            _kill(process)

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop: other long work of theirs should, too."""
        return self._cancelled

    def resume(self) -> None:
        """After `cancel`: start processes again, to finish or to mend."""
        self._cancelled = False

    def _wait(self, process: Any, what: str, timeout: float | None) -> str:
        import sh

        timer = threading.Timer(timeout, _kill, [process]) if timeout else None
        if timer:
            timer.start()
        try:
            process.wait()
        except sh.ErrorReturnCode as error:  # includes death by signal
            detail = _sentence(error.stderr.decode(errors="replace"))
            if timer and timer.finished.is_set() and not self._cancelled:
                detail = f"no answer for {timeout} s"
            raise QemuImgError(
                f"qemu-img {what}: {detail or f'ended with status {error.exit_code}'}",
                remedy="see qemu-img(1)",
            ) from error
        except BaseException:
            _end(process)  # KeyboardInterrupt: nobody will wait for it any more
            raise
        finally:
            if timer:
                timer.cancel()
            self._running.pop(id(process), None)
        return bytes(process.stdout).decode(errors="surrogateescape")

    def create_overlay(
        self,
        path: Path,
        *,
        base: str,
        base_format: Format,
        virtual_size: int,
        features: Qcow2Features,
        unchecked: bool = False,
    ) -> None:
        """Create a qcow2 overlay of `virtual_size` bytes at `path`, recording `base` as given.

        `base` is absolute, or relative to the folder of `path`. qemu-img opens the whole chain
        below it, unless it is to be `unchecked`. An existing empty `path` keeps its inode, owner
        and mode.
        """
        self.run(
            "create", "-q", *(["-u"] if unchecked else []),
            "-f", Format.QCOW2, "-o", _creation(features),
            "-F", base_format, "-b", base, path, str(virtual_size),
        )  # fmt: skip

    def create_scratch(self, path: Path, *, virtual_size: int, sparse: bool = False) -> None:
        """Create an empty qcow2 without a backing name, to be given one by `Scratch`.

        `sparse`: for few changes far from each other, as those of a large image's metadata.
        Clusters of 2 MiB with subclusters of 64 KiB need one L2 table for 256 GiB, where clusters
        of 64 KiB need one for 512 MiB: *measured* on 1 TiB, less than half of the CPU time, since
        a new table costs four writes. But discards of less than a cluster are lost.
        """
        wide = "cluster_size=2M,extended_l2=on,lazy_refcounts=on"
        options = ["-o", wide] if sparse else []
        self.run("create", "-q", "-f", Format.QCOW2, *options, path, str(virtual_size))

    def convert_snapshot(
        self,
        source: Path,
        source_format: Format,
        snapshot_id: str,
        target: Path,
        features: Qcow2Features,
        watch: Watch | None = None,
    ) -> None:
        """Write what an internal snapshot shows into a qcow2 of its own. Not synced."""
        self.run(
            "convert", "-p", "-t", "writeback", "-l", f"snapshot.id={snapshot_id}",
            "-f", source_format, "-O", Format.QCOW2, "-o", _creation(features), source, target,
            timeout=None, watch=watch,
        )  # fmt: skip

    def convert(
        self,
        source: Node,
        target: Path,
        target_format: Format,
        *,
        features: Qcow2Features | None = None,
        backing: str = "",
        backing_format: Format | None = None,
        bitmaps: bool = False,
        watch: Watch | None = None,
    ) -> None:
        """Write what a guest reads of `source` into `target`, which is emptied first. Not synced.

        With `backing`, recorded as given and meant from the folder of `target`, only what the
        active layer has itself: both must show the same below. An existing `target` keeps its
        inode, owner and mode. `features` are those of a qcow2.
        """
        words: list[str | Path] = ["convert", "-p", "-t", "writeback"]
        words += ["-o", _creation(features)] if features else []
        words += ["-B", backing, "-F", backing_format] if backing and backing_format else []
        words += ["--bitmaps", "--skip-broken-bitmaps"] if bitmaps else []
        words += ["-f", source.format, "-O", target_format, source.path, target]
        self.run(*words, timeout=None, watch=watch)

    def convert_into(
        self, source: Node, target: Node, *, backing: str = "", watch: Watch | None = None
    ) -> None:
        """The same into an image that is there, of the same size, which is not emptied before.

        Zeros are written, too. imgtool holds the lock of `target`. Not synced.
        """
        words: list[str | Path] = ["convert", "-p", "-n", "-t", "writeback"]
        words += ["-B", backing] if backing else []
        words += ["-f", source.format, "--target-image-opts", source.path]
        self.run(*words, _chain_options([target]), timeout=None, watch=watch)

    def same_content(self, one: Node, other: Node, watch: Watch | None = None) -> bool:
        """Whether a guest reads the same through both, to the last byte of the longer one."""
        words = ("compare", "-p", "-f", one.format, "-F", other.format, one.path, other.path)
        output = self.run(*words, timeout=None, ok=(0, 1), watch=watch)
        return "Images are identical." in output

    def same_as_ours(self, one: Node, other: Node, watch: Watch | None = None) -> bool:
        """The same of images that imgtool holds the locks of, as their only writer."""
        options = (_chain_options([one]), _chain_options([other]))
        said = self.run(
            "compare", "-p", "--image-opts", *options, timeout=None, ok=(0, 1), watch=watch
        )
        return "Images are identical." in said

    def shrink(self, path: Path, virtual_size: int) -> None:
        """Make a qcow2 of our own as small as that; what is beyond is lost. Not synced."""
        self.run("resize", "-q", "--shrink", "-f", Format.QCOW2, path, str(virtual_size))

    def merge_down(self, layers: Sequence[Node], watch: Watch | None = None) -> None:
        """Commit all layers into `layers[0]`; the layers themselves stay as they are. Not synced.

        imgtool holds the locks of all of them. A kill leaves what is seen through the last layer
        as it was; the base may have leaked clusters, and another run completes it.
        """
        self.run(
            "commit", "-d", "-p", "-t", "writeback", "-b", layers[0].path,
            "--image-opts", _chain_options(layers), timeout=None, watch=watch,
        )  # fmt: skip

    def rebase(
        self,
        image: Path,
        backing: str,
        backing_format: Format | None,
        *,
        unsafe: bool = False,
        below: Sequence[Node] = (),
        watch: Watch | None = None,
    ) -> None:
        """Give a qcow2 another base (none: ''), copying what it would miss unless `unsafe`.

        `below`: its layers, base first, if other than by the names that they record. One of them
        as the new base makes qemu-img look only at what the layers above it have; of any other,
        and of none, it reads and compares the whole virtual size. imgtool holds the locks of all.
        Not synced. A kill may leave the name of the new base without the last of the data that
        were copied: what is seen through the old one is right.
        """
        words: list[str | Path] = ["rebase", "-t", "writeback", "-b", backing]
        words += ["-F", backing_format] if backing_format else []
        words += ["-u"] if unsafe else ["-p"]
        layers = [*below, Node(path=image, format=Format.QCOW2)]
        self.run(*words, "--image-opts", _chain_options(layers), timeout=None, watch=watch)

    def repair_leaks(self, image: Path) -> None:
        """Free clusters that a killed qemu-img has leaked. imgtool holds the image's lock."""
        node = Node(path=image, format=Format.QCOW2)
        options = _chain_options([node])
        self.run("check", "-q", "-r", "leaks", "--image-opts", options, timeout=None, ok=(0, 3))

    def merge_bitmap(self, base: Node, name: str, source: Node, *, add: bool) -> None:
        """Add what the bitmap of `source` has marked to that of `base`, which `add` makes first.

        imgtool holds the locks of both. A kill may leave the bitmap of the base inconsistent,
        which QEMU sees, and never uses.
        """
        options = _chain_options([base])
        if add:
            self.run("bitmap", "--add", "--image-opts", options, name)
        self.run(
            "bitmap", "--merge", name, "-b", source.path, "-F", source.format,
            "--image-opts", options, name, timeout=None,
        )  # fmt: skip

    def change(self, command: Sequence[str], scratch: Scratch) -> None:
        """Run a subcommand that writes an image, on a scratch layer over it.

        Words after a `--` follow the image.
        """
        at = command.index("--") if "--" in command else len(command)
        words, operands = command[:at], command[at + 1 :]
        # Whole passes over the metadata of large images: no time limit.
        self.run(*words, "--image-opts", scratch.options(), *operands, timeout=None)

    def check_scratch(self, scratch: Scratch) -> CheckReport:
        """Check the image as it reads through a scratch layer."""
        output = self.run(
            "check", "--output=json", "--image-opts", scratch.options(), timeout=None, ok=(0, 2, 3)
        )
        return _report(output)

    def check(self, path: Path, fmt: Format) -> CheckReport:
        """Check an image. Other than qemu-img, damage is not an error here."""
        output = self.run("check", "--output=json", "-f", fmt, path, timeout=None, ok=(0, 2, 3))
        return _report(output)

    def check_alone(self, path: Path, fmt: Format, *, block_device: bool) -> CheckReport:
        """Check one image whatever has become of its base, which is not opened."""
        driver = "host_device" if block_device else "file"
        options = f"driver={fmt},backing=,file.driver={driver},file.filename={_escape(path)}"
        words = ("check", "--output=json", "--image-opts", options)
        return _report(self.run(*words, timeout=None, ok=(0, 2, 3)))

    def has_own_data(self, path: Path, *, block_device: bool) -> bool:
        """Whether a qcow2 holds any cluster itself, rather than showing its base: not opened."""
        driver = "host_device" if block_device else "file"
        options = f"driver=qcow2,backing=,file.driver={driver},file.filename={_escape(path)}"
        output = self.run("map", "--output=json", "--image-opts", options, timeout=None)
        entries = _json(output, "map")
        return any(entry["depth"] == 0 and entry.get("present", True) for entry in entries)

    def info_json(self, path: Path, fmt: Format) -> bytes:
        """`qemu-img info` of one image, without its chain, as JSON."""
        return self.run("info", "--output=json", "-f", fmt, path).encode(errors="surrogateescape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """An image seen through a scratch qcow2 that takes all writes, and without its backing file.

    The scratch layer is never needed after a crash, so its flushes are left out. The backing file
    is not opened: a relative name would be looked up from the folder of the scratch layer, and
    internal snapshots do not need its data. For a command that does, `below` says where it is.
    """

    redo: Path  # the scratch qcow2; has no backing name of its own
    image: Path  # the qcow2 below, opened read-only
    block_device: bool
    below: tuple[Node, ...] = ()  # base first; what is below the first is opened by its name

    def options(self) -> str:
        """For --image-opts; a comma in a value is doubled."""
        driver = "host_device" if self.block_device else "file"
        # No base: "" is one; only JSON knows null, and JSON has no names that are not UTF-8.
        below = _chain_options(self.below, "backing.") if self.below else "backing="
        return ",".join(
            (
                "driver=qcow2",
                "discard=unmap",
                below,
                "file.driver=qcow2",
                "file.l2-cache-entry-size=65536",  # and not whole tables at once, of 2 MiB
                "file.discard=unmap",
                "file.cache.no-flush=on",
                "cache.no-flush=on",
                "file.file.driver=file",
                "file.file.filename=" + _escape(self.redo),
                "file.backing.driver=raw",
                f"file.backing.file.driver={driver}",
                "file.backing.file.filename=" + _escape(self.image),
                "file.backing.file.locking=off",  # imgtool holds its locks
            )
        )


def _creation(features: Qcow2Features) -> str:
    """For -o of create and convert."""
    options = f"cluster_size={features.cluster_size},compat={features.compat}"
    if features.compat != "0.10":
        options += f",lazy_refcounts={_on(features.lazy_refcounts)}"
        options += f",extended_l2={_on(features.extended_l2)}"
        options += f",refcount_bits={features.refcount_bits}"
    return options


def _chain_options(layers: Sequence[Node], under: str = "") -> str:
    """For --image-opts: the last layer over those before it, without locks of their own.

    What is below the first is opened by the name that it records.
    """
    options = []
    for depth, node in enumerate(reversed(layers)):
        prefix = under + "backing." * depth
        driver = "host_device" if node.block_device else "file"
        options += [
            f"{prefix}driver={node.format}",
            f"{prefix}file.driver={driver}",
            f"{prefix}file.filename={_escape(node.path)}",
            f"{prefix}file.locking=off",
        ]
        if node.format is Format.QCOW2:
            # Or nothing makes data reach the disk before the tables that lead to them.
            options.append(f"{prefix}lazy-refcounts=off")
    return ",".join(options)


def _escape(path: Path) -> str:
    return os.fspath(path).replace(",", ",,")


def _on(value: bool) -> str:
    return "on" if value else "off"


def _progress(watch: Watch) -> Callable[[bytes], None]:
    """A reader of what -p prints, such as `    (12.50/100%)` and a carriage return."""
    seen = bytearray()

    def read(chunk: bytes | str) -> None:
        seen.extend(chunk.encode() if isinstance(chunk, str) else chunk)
        found = _PERCENT.findall(seen)
        if found:
            watch(float(found[-1]) / 100)
            del seen[: seen.rfind(b")")]

    return read


def _sentence(stderr: str) -> str:
    """What it complained of, in one line; its warnings are not why it failed."""
    lines = (line for line in stderr.splitlines() if not line.startswith(f"{TOOL}: warning: "))
    return " ".join(" ".join(lines).split())


def _kill(process: Any) -> None:
    try:
        process.kill()
    except (ProcessLookupError, OSError):
        return  # it has ended by itself


def _end(process: Any) -> None:
    """Kill it, and wait until it has gone: it must not go on writing behind our back."""
    import sh

    _kill(process)
    with suppress(sh.ErrorReturnCode):
        process.wait()


def _report(output: str) -> CheckReport:
    facts = _json(output, "check")
    return CheckReport(
        corruptions=int(facts.get("corruptions", 0)),
        leaks=int(facts.get("leaks", 0)),
        errors=int(facts.get("check-errors", 0)),
        image_end=facts.get("image-end-offset"),
    )


def _json(output: str, what: str) -> Any:
    try:
        return json.loads(output)
    except ValueError as error:
        raise QemuImgError(f"qemu-img {what}: no JSON came back") from error
