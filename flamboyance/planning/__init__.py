"""What a training run will take: time, memory and cost, without a GPU."""
