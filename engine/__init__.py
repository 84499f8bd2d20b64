"""What runs a model: device, training, sampling, cache, checkpoint, predictor, evaluation."""
