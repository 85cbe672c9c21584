"""`python -m bench export`: runs as DAWNBench, MLPerf, CSV, LaTeX and ONNX."""
