"""Moments in a snapshot of a Machine. libvirt is behind a socket, so each of its writes is
followed by a sync(2): of the record, of the current snapshot's name, of the new domain XML."""

from __future__ import annotations

from .held import Moment
from .machine import Machine

EXTERNAL = ("snapshot-create-as", "vm", "s1", "--disk-only")
INTERNAL = ("snapshot-create-as", "vm", "s1", "--diskspec", "vdc,snapshot=no")
MIXED = ("snapshot-create-as", "vm", "s1", "--diskspec", "vdc,snapshot=external")

RECORDED = Moment("sync", when=1)
MADE_CURRENT = Moment("sync", when=2)
PIVOTED = Moment("sync", when=3)


def surveyed(machine: Machine, target: str) -> Moment:
    """It has seen the disks before `target`, and locked none yet."""
    return Moment("openat", machine.image(target))


def published(machine: Machine, target: str) -> Moment:
    """An overlay has its final name."""
    return Moment("link,linkat", machine.image(target).with_suffix(".s1"))


def blocked(machine: Machine) -> Moment:
    """The first image has been blocked."""
    return Moment("pwrite64", machine.image("vda"))


def half_written(machine: Machine) -> Moment:
    """vda has some bytes of its new snapshot, vdb none. (The first write of one thread blocks.)"""
    return Moment("pwrite64", machine.image("vda"), when=2)
