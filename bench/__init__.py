"""The harness: runs recipes of `swap_fast`, keeps records of them, and draws the report."""
