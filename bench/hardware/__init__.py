"""The machine that a run ran on (`machine`), and its telemetry (`telemetry`)."""
