"""Runs in the formats of others: CSV, LaTeX, DAWNBench, MLPerf, ONNX."""
