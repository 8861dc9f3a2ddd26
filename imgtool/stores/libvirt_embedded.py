"""The QEMU driver inside our own process, `qemu:///embed?root=DIR`."""

from __future__ import annotations

import threading
from types import ModuleType


class Embedded(threading.Thread):
    """The embedded driver of this process: its event loop, and its connection.

    It needs events, registered before it is opened, and can be opened a few times only. Like
    the driver itself it lives as long as the process, and is found among the threads.
    """

    def __init__(self, libvirt: ModuleType) -> None:
        super().__init__(name="imgtool-embedded-libvirt", daemon=True)
        self._libvirt = libvirt
        self._open: dict[str, object] = {}

    @classmethod
    def running(cls, libvirt: ModuleType) -> Embedded:
        """The one of this process, started if need be."""
        for thread in threading.enumerate():
            if isinstance(thread, cls):
                return thread
        libvirt.virEventRegisterDefaultImpl()
        thread = cls(libvirt)
        thread.start()
        return thread

    def run(self) -> None:
        while True:
            self._libvirt.virEventRunDefaultImpl()

    def connect(self, uri: str) -> object:
        """A virConnect, never to be closed. Raises libvirtError."""
        if uri not in self._open:
            self._open[uri] = self._libvirt.open(uri)
        return self._open[uri]
