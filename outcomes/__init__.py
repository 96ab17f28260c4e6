"""What learning runs on: outcome tables, embedder, grading, collecting, metrics, artefacts, training and
evaluation."""
