"""What attacks do to embeddings."""
