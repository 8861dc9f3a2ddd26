"""The table of 2012, row by row, as the specification prints it."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from imgtool.model.domain import Disk, Domain, DomainState, SnapshotMode
from imgtool.model.errors import BadRequestError, DomainActiveError
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.plan.select import Choice, select
from imgtool.plan.table import TABLE, Mode, Outcome, look_up

MODES: tuple[Mode, ...] = ("omit", "no", "int", "ext")
ANY, OFF, ON = (False, True), (False,), (True,)
MEMORY = {"omit": None, "no": "no", "int": "internal", "ext": "external"}
DISK = {
    "omit": None,
    "no": SnapshotMode.NO,
    "int": SnapshotMode.INTERNAL,
    "ext": SnapshotMode.EXTERNAL,
}
SAVEVM = "virsh snapshot-create-as vm,"
TRANSACTION = "virsh snapshot-create-as vm --disk-only,"
MIGRATE = "virsh snapshot-create-as vm --memspec FILE,snapshot=external"

# domain, memory, disk, disk-only, what is said or done, and online the virsh command
ROWS: tuple[tuple[str, str, str, tuple[bool, ...], str, str], ...] = (
    ("offline", "omit", "omit", OFF, "int", ""),
    ("offline", "no", "omit", OFF, "int", ""),
    ("offline", "omit/no", "no", ANY, "nothing to snapshot", ""),
    ("offline", "omit/no", "int", ANY, "int", ""),
    ("offline", "omit/no", "ext", ANY, "ext", ""),
    ("offline", "int/ext", "omit/no/int/ext", ANY, "no memory to save", ""),
    ("online", "omit", "omit/int", OFF, "memory=int disk=int, via savevm", SAVEVM),
    ("online", "omit", "omit/ext", ON, "memory=no disk=ext, via transaction", TRANSACTION),
    ("online", "omit", "no/ext", OFF, "unsupported", MIGRATE),
    ("online", "omit", "no", ON, "invalid: nothing to snapshot", "--diskspec DISK"),
    ("online", "omit", "int", ON, "unsupported", "virsh snapshot-create-as vm;"),
    ("online", "no", "omit/ext", ANY, "memory=no disk=ext, via transaction", TRANSACTION),
    ("online", "no", "no", ANY, "invalid: nothing to snapshot", "--diskspec DISK"),
    ("online", "no", "int", ANY, "unsupported", "virsh snapshot-create-as vm;"),
    ("online", "int/ext", "omit/no/int/ext", ON, "invalid: disk-only against memory", "disk-only;"),
    ("online", "int", "omit/int", OFF, "memory=int disk=int, via savevm", SAVEVM),
    ("online", "int", "no/ext", OFF, "unsupported", MIGRATE),
    ("online", "ext", "omit/ext", OFF, "memory=ext disk=ext, via migrate + transaction", MIGRATE),
    ("online", "ext", "no", OFF, "memory=ext disk=no, via migrate", f"{MIGRATE} --diskspec DISK"),
    ("online", "ext", "int", OFF, "unsupported", MIGRATE),
    # The one deviation, as in today's virsh: 2012 said int.
    ("offline", "omit", "omit", ON, "ext", ""),
    ("offline", "no", "omit", ON, "ext", ""),
)
STOPPED = [row for row in ROWS if row[0] == "offline"]
RUNNING = [row for row in ROWS if row[0] == "online"]


def _name(row: tuple[str, str, str, tuple[bool, ...], str, str]) -> str:
    domain, memory, disk, only, *_ = row
    return f"{domain}-{memory}-{disk}-{'any' if only == ANY else 'on' if only == ON else 'off'}"


def _select(memory: str, disk: str, disk_only: bool, state: DomainState) -> tuple[Choice, ...]:
    vda = Disk(
        target="vda", source=Path("/vda.qcow2"), format=Format.QCOW2, format_name=Format.QCOW2
    )
    domain = Domain(name="vm", uuid="u", disks=(vda,))
    disks = () if disk == "omit" else (SnapshotDisk(name="vda", mode=DISK[disk]),)
    request = SnapshotRequest(name="s1", memory=MEMORY[memory], disks=disks)
    return select(request, domain, state, disk_only=disk_only)


@pytest.mark.parametrize("row", STOPPED, ids=_name)
def test_a_row_of_a_stopped_domain(row: tuple[str, str, str, tuple[bool, ...], str, str]) -> None:
    _, memories, disks, onlys, result, _ = row
    for memory, disk, only in product(memories.split("/"), disks.split("/"), onlys):
        if result in ("int", "ext"):
            (choice,) = _select(memory, disk, only, DomainState.SHUTOFF)
            assert choice.mode is DISK[result]
            continue
        with pytest.raises(BadRequestError) as raised:
            _select(memory, disk, only, DomainState.SHUTOFF)
        assert type(raised.value) is BadRequestError
        assert result in raised.value.message
        assert raised.value.exit_code == 2


@pytest.mark.parametrize("state", [DomainState.RUNNING, DomainState.PAUSED])
@pytest.mark.parametrize("row", RUNNING, ids=_name)
def test_a_row_of_an_active_domain(
    row: tuple[str, str, str, tuple[bool, ...], str, str], state: DomainState
) -> None:
    _, memories, disks, onlys, result, command = row
    for memory, disk, only in product(memories.split("/"), disks.split("/"), onlys):
        with pytest.raises(DomainActiveError) as raised:
            _select(memory, disk, only, state)
        error = raised.value
        assert error.exit_code == 3
        assert f"vm is {state}" in error.message
        assert result in error.message
        assert command in error.remedy
        assert "virsh shutdown vm" in error.remedy


def test_the_specification_has_20_rows_and_one_deviation() -> None:
    assert (len(STOPPED), len(RUNNING)) == (6 + 2, 14)


@pytest.mark.parametrize("online", [False, True])
def test_every_combination_falls_under_exactly_one_row(online: bool) -> None:
    for memory, disk, only in product(MODES, MODES, (False, True)):
        rows = [
            row
            for row in TABLE
            if row.online == online
            and memory in row.memory
            and disk in row.disk
            and only in row.disk_only
        ]
        # 2012 gives online/omit/ext/on and the like one row each, whatever their order is.
        assert len(rows) == 1, (memory, disk, only, rows)
        assert look_up(online=online, memory=memory, disk=disk, disk_only=only) is rows[0]


def test_the_table_says_what_the_specification_says() -> None:
    """Of each combination: a snapshot, invalid, or unsupported."""
    outcome = {"int": Outcome.SNAPSHOT, "ext": Outcome.SNAPSHOT, "unsupported": Outcome.UNSUPPORTED}
    seen = 0
    for domain, memories, disks, onlys, result, _ in ROWS:
        default = Outcome.SNAPSHOT if result.startswith("memory=") else Outcome.INVALID
        for memory, disk, only in product(MODES, MODES, onlys):
            if memory in memories.split("/") and disk in disks.split("/"):
                row = look_up(online=domain == "online", memory=memory, disk=disk, disk_only=only)
                assert row.outcome is outcome.get(result, default)
                seen += 1
    assert seen == 2 * 4 * 4 * 2


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        (DomainState.SAVED, "virsh managedsave-remove vm"),
        (DomainState.TRANSIENT, "virsh define"),
    ],
)
def test_neither_stopped_nor_running(state: DomainState, remedy: str) -> None:
    with pytest.raises(DomainActiveError) as raised:
        _select("omit", "omit", False, state)
    assert raised.value.exit_code == 3
    assert remedy in raised.value.remedy


@pytest.mark.parametrize(
    "modes", list(product(("omit", "no", "int", "ext"), repeat=3)), ids="-".join
)
@pytest.mark.parametrize("disk_only", [False, True])
def test_each_disk_by_itself(modes: tuple[str, str, str], disk_only: bool) -> None:
    """Offline rows hold per disk: no disk's mode depends on what another disk is given."""
    disks = tuple(
        Disk(target=name, source=Path(f"/{name}"), format=Format.QCOW2, format_name="qcow2")
        for name in ("vda", "vdb", "vdc")
    )
    asked = tuple(
        SnapshotDisk(name=disk.target, mode=DISK[mode])
        for disk, mode in zip(disks, modes, strict=True)
    )
    domain = Domain(name="vm", uuid="u", disks=disks)
    request = SnapshotRequest(name="s1", disks=asked)
    default = SnapshotMode.EXTERNAL if disk_only else SnapshotMode.INTERNAL
    if set(modes) == {"no"}:
        with pytest.raises(BadRequestError, match="nothing to snapshot"):
            select(request, domain, DomainState.SHUTOFF, disk_only=disk_only)
        return
    choices = select(request, domain, DomainState.SHUTOFF, disk_only=disk_only)
    assert [choice.mode for choice in choices] == [DISK[mode] or default for mode in modes]
