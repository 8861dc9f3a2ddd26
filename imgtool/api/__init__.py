"""Everything that the command line can do, typed, silent: one short function per operation.

`open_world` connects to a store; the other functions take the World it returns. All raise
ImgtoolError; `error.exit_code` and `error.remedy` say what is true then and what to do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from imgtool.api.blockcopy import (
        CopyOptions,
        CopyResult,
        CopyTarget,
        Ending,
        block_copy,
        block_job,
        block_job_abort,
        block_job_pivot,
    )
    from imgtool.api.blockjobs import (
        CommitOptions,
        JobResult,
        PullOptions,
        RebaseOptions,
        ResizeOptions,
        block_commit,
        block_pull,
        rebase,
        resize,
    )
    from imgtool.api.chaincopy import ChainCopyOptions, ChainCopyResult, copy_chain
    from imgtool.api.checks import Checkup, RepairOptions, RepairResult, check, repair
    from imgtool.api.delete import DeleteOptions, DeleteResult, delete_snapshot
    from imgtool.api.domains import chains, define, set_current_snapshot, snapshots, undefine
    from imgtool.api.migration import MigrateOptions, MigrateResult, migrate
    from imgtool.api.mirror_end import MirrorEndOptions, MirrorEndResult, end_mirror
    from imgtool.api.mirrors import (
        MirrorFilesResult,
        OverlayOptions,
        OverlayResult,
        create_mirror_files,
        create_overlay,
    )
    from imgtool.api.recovery import copy_jobs, pending, recover
    from imgtool.api.revert import RevertOptions, RevertResult, revert_to
    from imgtool.api.snapshot import (
        DiskResult,
        SnapshotOptions,
        SnapshotResult,
        redefine_snapshot,
        take_snapshot,
    )
    from imgtool.api.sweeping import Swept, sweep
    from imgtool.api.world import default_uri, locate, open_world, working_on

# What the name is in (a module may not be called like a function: importing it would hide the
# function). A command imports only what it uses, and start-up stays short.
_HOMES = {
    "ChainCopyOptions": "chaincopy",
    "ChainCopyResult": "chaincopy",
    "Checkup": "checks",
    "CommitOptions": "blockjobs",
    "CopyOptions": "blockcopy",
    "CopyResult": "blockcopy",
    "CopyTarget": "blockcopy",
    "DeleteOptions": "delete",
    "DeleteResult": "delete",
    "DiskResult": "snapshot",
    "Ending": "blockcopy",
    "JobResult": "blockjobs",
    "MigrateOptions": "migration",
    "MigrateResult": "migration",
    "MirrorEndOptions": "mirror_end",
    "MirrorEndResult": "mirror_end",
    "MirrorFilesResult": "mirrors",
    "OverlayOptions": "mirrors",
    "OverlayResult": "mirrors",
    "PullOptions": "blockjobs",
    "RebaseOptions": "blockjobs",
    "RepairOptions": "checks",
    "RepairResult": "checks",
    "ResizeOptions": "blockjobs",
    "RevertOptions": "revert",
    "RevertResult": "revert",
    "SnapshotOptions": "snapshot",
    "SnapshotResult": "snapshot",
    "Swept": "sweeping",
    "block_commit": "blockjobs",
    "block_copy": "blockcopy",
    "block_job": "blockcopy",
    "block_job_abort": "blockcopy",
    "block_job_pivot": "blockcopy",
    "block_pull": "blockjobs",
    "chains": "domains",
    "check": "checks",
    "copy_chain": "chaincopy",
    "copy_jobs": "recovery",
    "create_mirror_files": "mirrors",
    "create_overlay": "mirrors",
    "default_uri": "world",
    "define": "domains",
    "delete_snapshot": "delete",
    "end_mirror": "mirror_end",
    "locate": "world",
    "migrate": "migration",
    "open_world": "world",
    "pending": "recovery",
    "rebase": "blockjobs",
    "recover": "recovery",
    "redefine_snapshot": "snapshot",
    "repair": "checks",
    "resize": "blockjobs",
    "revert_to": "revert",
    "set_current_snapshot": "domains",
    "snapshots": "domains",
    "sweep": "sweeping",
    "take_snapshot": "snapshot",
    "undefine": "domains",
    "working_on": "world",
}

__all__ = [
    "ChainCopyOptions",
    "ChainCopyResult",
    "Checkup",
    "CommitOptions",
    "CopyOptions",
    "CopyResult",
    "CopyTarget",
    "DeleteOptions",
    "DeleteResult",
    "DiskResult",
    "Ending",
    "JobResult",
    "MigrateOptions",
    "MigrateResult",
    "MirrorEndOptions",
    "MirrorEndResult",
    "MirrorFilesResult",
    "OverlayOptions",
    "OverlayResult",
    "PullOptions",
    "RebaseOptions",
    "RepairOptions",
    "RepairResult",
    "ResizeOptions",
    "RevertOptions",
    "RevertResult",
    "SnapshotOptions",
    "SnapshotResult",
    "Swept",
    "block_commit",
    "block_copy",
    "block_job",
    "block_job_abort",
    "block_job_pivot",
    "block_pull",
    "chains",
    "check",
    "copy_chain",
    "copy_jobs",
    "create_mirror_files",
    "create_overlay",
    "default_uri",
    "define",
    "delete_snapshot",
    "end_mirror",
    "locate",
    "migrate",
    "open_world",
    "pending",
    "rebase",
    "recover",
    "redefine_snapshot",
    "repair",
    "resize",
    "revert_to",
    "set_current_snapshot",
    "snapshots",
    "sweep",
    "take_snapshot",
    "undefine",
    "working_on",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"imgtool.api.{_HOMES[name]}"), name)
