"""The command line on the embedded driver: no daemon, one process after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.testing import make_three_disks
from tests.libvirt_fixtures import embedded_uri, short_folder, virsh

from .command import imgtool


@pytest.mark.libvirtd
@pytest.mark.xdist_group("libvirtd")
def test_a_mixed_snapshot_without_a_daemon(tmp_path: Path) -> None:
    made = make_three_disks(tmp_path)
    with short_folder() as root:
        uri = embedded_uri(root)
        assert imgtool("-c", uri, "define", made.xml).returncode == 0
        words = ["-c", uri, "snapshot-create-as", "vm", "s1", "--diskspec", "vdc,snapshot=external"]
        ended = imgtool(*words)
        assert (ended.returncode, ended.stdout) == (0, "Domain snapshot s1 created\n"), ended.stderr
        again = imgtool(*words)
        assert again.returncode == 2
        assert virsh(uri, "snapshot-current", "vm", "--name") == "s1"
        assert str(tmp_path / "vm-vdc.s1") in imgtool("-c", uri, "domblklist", "vm").stdout
        assert not (root / "imgtool").exists()
