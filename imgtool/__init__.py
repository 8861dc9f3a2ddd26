"""imgtool: atomic, crash-safe snapshots of stopped virtual machines."""

__version__ = "0.1.0"
