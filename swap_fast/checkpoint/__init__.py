"""Checkpoints and the run folder: what is saved, how it is verified, where a run resumes."""
