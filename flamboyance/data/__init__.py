"""Training data: shards in public formats -> batches, resumed exactly where a run stopped."""
