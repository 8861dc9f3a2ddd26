"""Floor 1: one pure planner per operation. No os, no clock, no random."""
