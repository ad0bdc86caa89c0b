"""What must hold: one registry of checks behind commands, probes, pages and the watchdog."""
