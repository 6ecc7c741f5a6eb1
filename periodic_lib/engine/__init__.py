"""What trains: networks, data and optimizers of many runs as one stack, its step and its record."""
