"""The pipeline's stages: files in, files out, recorded in MLflow."""
