"""Rows -> token ids with a loss mask: encoding, several processes, the cache, the tokenized data set."""
