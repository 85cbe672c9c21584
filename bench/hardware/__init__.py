"""The machine that a run ran on (`machine`), its cores (`cores`) and telemetry (`telemetry`)."""
