"""What a run ran on: the machine, and the driver's telemetry."""
