"""A domain in a real libvirtd: three disks with guest data, for imgtool and for virsh."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgtool.testing import State, capture, make_three_disks
from tests.libvirt_fixtures import libvirtd_folder, virsh

from .command import Done, imgtool

PASSWORD = "sesame"
_EXTRAS = f"""\
    <graphics type='vnc' passwd='{PASSWORD}'><listen type='socket'/></graphics>
  </devices>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One domain: vda and vdb are qcow2, vdc is raw. Everything of it is below `folder`."""

    uri: str
    folder: Path
    name: str = "vm"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def state_dir(self) -> Path:
        """Journals go here; there is no such folder while nothing is pending."""
        return self.folder / "state"

    def image(self, target: str) -> Path:
        """What a disk had when the domain was made."""
        suffix = "raw" if target == "vdc" else "qcow2"
        return self.images / f"{self.name}-{target}.{suffix}"

    def words(self, *words: str | Path) -> list[str]:
        """Arguments of imgtool, for this store."""
        return ["-c", self.uri, "--state-dir", str(self.state_dir), *map(str, words)]

    def imgtool(self, *words: str | Path) -> Done:
        return imgtool(*self.words(*words))

    def done(self, *words: str | Path) -> str:
        """The same; it must succeed. Returns what it prints."""
        ended = self.imgtool(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def json(self, *words: str | Path) -> Any:
        return json.loads(self.done("--json", *words))

    def virsh(self, *args: str | Path) -> str:
        return virsh(self.uri, *args)

    def virsh_fails(self, *args: str | Path) -> str:
        """What virsh says when it fails, as it must."""
        command = ["virsh", "-q", "-c", self.uri, *map(str, args)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode != 0, f"virsh {args} should have failed: {ended.stdout}"
        return ended.stderr

    def does_not_start(self) -> str:
        """What virsh and QEMU say when the domain does not start, as it must not.

        Where libvirt is late to see that QEMU has ended, virsh only tells of QEMU's monitor; the
        reason is in QEMU's log, which no start ever cuts.
        """
        log = libvirtd_folder(self.uri) / f"log/qemu/{self.name}.log"
        old = log.stat().st_size if log.exists() else 0
        said = self.virsh_fails("start", self.name)
        with log.open("rb") as file:
            file.seek(old)
            return said + file.read().decode(errors="replace")

    def remedy(self, ended: Done) -> str:
        """The virsh command that a refusal names, run: it must work."""
        (line,) = (text for text in ended.stderr.splitlines() if text.startswith("remedy: "))
        words = line.partition("virsh ")[2].split(",")[0].split()
        return self.virsh(*words)

    def xml(self) -> str:
        return self.virsh("dumpxml", self.name, "--inactive", "--security-info")

    def sources(self) -> dict[str, str]:
        """What virsh says that the disks are."""
        lines = self.virsh("domblklist", self.name, "--inactive").splitlines()
        return dict(line.split(maxsplit=1) for line in map(str.strip, lines))

    def open_files(self) -> set[Path]:
        """The files that the running QEMU has open."""
        shown = self.virsh(
            "qemu-monitor-command", self.name, '{"execute": "query-named-block-nodes"}'
        )
        nodes = json.loads(shown)["return"]
        return {Path(node["file"]) for node in nodes if node["drv"] == "file"}

    def guest_writes(self, target: str, command: str) -> None:
        """Let the running QEMU do a qemu-io command on a disk, as if its guest had."""
        device = f"/machine/peripheral/virtio-disk{ord(target[-1]) - ord('a')}/virtio-backend"
        said = self.virsh(
            "qemu-monitor-command", self.name, "--hmp", f'qemu-io -d {device} "{command}"'
        )
        assert not said, said  # what qemu-io says goes into the log of QEMU

    def captured(self) -> State:
        return capture(self.uri, self.name, [self.folder])

    @contextmanager
    def running(self) -> Iterator[None]:
        self.virsh("start", self.name)
        try:
            yield
        finally:
            self.virsh("destroy", self.name)


@contextmanager
def defined(uri: str, folder: Path, name: str = "vm", *, keep: bool = False) -> Iterator[Machine]:
    """A machine in `folder`. At the end all of that libvirt are forgotten, but for `keep`."""
    machine = Machine(uri=uri, folder=folder, name=name)
    machine.images.mkdir()
    made = make_three_disks(machine.images, name)
    xml = made.xml.read_text().replace("  </devices>", _EXTRAS)
    made.xml.write_text(xml)
    machine.virsh("define", made.xml)
    made.xml.unlink()
    try:
        yield machine
    finally:
        if not keep:
            forget(uri)


def forget(uri: str) -> None:
    """Stop and undefine every domain."""
    for name in virsh(uri, "list", "--name").split():
        virsh(uri, "destroy", name)
    for name in virsh(uri, "list", "--all", "--name").split():
        virsh(uri, "undefine", name, "--snapshots-metadata", "--managed-save")
