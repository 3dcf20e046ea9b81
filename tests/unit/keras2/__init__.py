"""Networks that Keras 2 wrote, with its own scores."""
