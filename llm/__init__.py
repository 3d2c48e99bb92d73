"""Language models: preference models, losses, training and evaluation."""
