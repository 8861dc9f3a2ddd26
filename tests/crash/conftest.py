"""What these tests share with others: see tests/crash_points.py."""

from __future__ import annotations

from tests.crash_points import CrashPoints

__all__ = ["CrashPoints"]
