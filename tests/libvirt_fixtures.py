"""Two real libvirts: the embedded QEMU driver, and a libvirtd of our own. Both as root.

Neither touches the machine's own libvirt. The daemon has no option for the folder of qemu.conf,
so it runs in a mount namespace, where /etc/libvirt and its like are folders of ours; it listens
on a socket in one of them, for `qemu+unix:///system?socket=...`. Mounts made later are seen in
there, too. Works in a container or a bare chroot: no systemd, no cgroups, no virtlogd, no KVM.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# user: guests read images in root's folders, and capabilities stay cached (see stores/libvirt.py)
QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
"""
MOUNTS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
    "run": "/run/libvirt",
}
START_SECONDS = 60.0


def embedded_uri(root: Path) -> str:
    """The URI of an embedded driver that keeps everything in `root`: one root per process."""
    (root / "etc").mkdir(parents=True, exist_ok=True)
    (root / "etc/qemu.conf").write_text(QEMU_CONF)
    return f"qemu:///embed?root={root}"


@pytest.fixture(scope="session")
def embed_uri() -> Iterator[str]:
    """The embedded driver of this process. What it logs goes to a file in its root.

    Another process cannot open it meanwhile: give that a root of its own (`embedded_uri`).
    """
    with short_folder() as root, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBVIRT_LOG_OUTPUTS", f"3:file:{root}/libvirt.log")
        yield embedded_uri(root)


@pytest.fixture(scope="session")
def libvirtd_uri() -> Iterator[str]:
    """A real libvirtd, for us alone until the session ends."""
    with private_libvirtd() as uri:
        yield uri


@contextmanager
def private_libvirtd() -> Iterator[str]:
    """The URI of a real libvirtd for us alone; guests of type='qemu' start in it."""
    with short_folder() as folder, libvirtd_in(folder) as uri:
        yield uri


@contextmanager
def libvirtd_in(folder: Path) -> Iterator[str]:
    """The same, with all that it keeps in a `short_folder`: another can go on there later."""
    _require("libvirtd", "virsh", "unshare", "setpriv", "mount", "qemu-system-x86_64")
    uri = f"qemu+unix:///system?socket={folder}/run/libvirt-sock"
    daemon = _start(folder)
    try:
        _wait(daemon, uri, folder / "log.txt")
        yield uri
    finally:
        _stop(daemon, uri)
        _unmount(folder)


def libvirtd_pid(uri: str) -> int:
    """The process behind such a URI."""
    return int((libvirtd_folder(uri) / "pid").read_text())


def libvirtd_folder(uri: str) -> Path:
    """The folder that it has all its own folders in: see MOUNTS."""
    return Path(uri.partition("socket=")[2]).parent.parent


def virsh(uri: str, *args: str | Path, check: bool = True) -> str:
    """What `virsh -c URI ARGS` prints."""
    done = subprocess.run(
        ["virsh", "-q", "-c", uri, *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or not check, f"virsh {args}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def short_folder() -> Iterator[Path]:
    """Sockets have at most 107 bytes of path, and pytest's own folders can be long."""
    folder = Path(tempfile.mkdtemp(prefix="imgtool-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require(*tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.fail(f"a libvirtd of our own needs root and these programs: {missing}")


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """libvirtd, behind exec after exec, so that it is the process we started; dies with us."""
    for name, mounted in MOUNTS.items():
        (folder / name).mkdir(exist_ok=True)
        Path(mounted).mkdir(parents=True, exist_ok=True)
    (folder / "etc/qemu.conf").write_text(QEMU_CONF)
    config = folder / "libvirtd.conf"
    config.write_text(
        f'unix_sock_dir = "{folder}/run"\n'
        'auth_unix_rw = "none"\n'
        f'log_outputs = "3:file:{folder}/log.txt"\n'
    )
    script = [f'mount --bind "$1/{name}" {mounted}' for name, mounted in MOUNTS.items()]
    script += ['exec libvirtd -f "$1/libvirtd.conf" -p "$1/pid"']
    return subprocess.Popen(
        [
            *("setpriv", "--pdeathsig", "TERM"),
            *("unshare", "--mount", "--propagation", _propagation(), "--"),
            *("sh", "-ec", "\n".join(script), "sh", folder),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={key: value for key, value in os.environ.items() if not key.startswith("LIBVIRT")},
    )


def _propagation() -> str:
    """In a chroot whose root is no mount point, propagation cannot be set: see `_unmount`."""
    probe = ["unshare", "--mount", "--propagation", "slave", "true"]
    done = subprocess.run(probe, capture_output=True, check=False)
    return "slave" if done.returncode == 0 else "unchanged"


def _wait(daemon: subprocess.Popen[bytes], uri: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not virsh(uri, "uri", check=False):
        if daemon.poll() is not None or time.monotonic() > end:
            said = log.read_text(errors="replace") if log.exists() else ""
            pytest.fail(f"libvirtd does not answer (exit code {daemon.returncode}):\n{said}")
        time.sleep(0.05)


def _stop(daemon: subprocess.Popen[bytes], uri: str) -> None:
    for name in virsh(uri, "list", "--name", check=False).split():
        virsh(uri, "destroy", name, check=False)
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _unmount(folder: Path) -> None:
    """Take back mounts that are seen outside, as where they are shared and `slave` failed."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        source, target = line.split()[3:5]
        if folder.name in source:
            subprocess.run(["umount", target], check=True)
