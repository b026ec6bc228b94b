"""Which rows make a step, how it is cut, and the micro-batches that come of it; planned ahead or from a stream."""
