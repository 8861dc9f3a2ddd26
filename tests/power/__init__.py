"""Block-level power cuts: every write and flush is logged, and the disk rebuilt at any moment."""
