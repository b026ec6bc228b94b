"""What rows mean: recognised by their columns, read with every mistake named. No tokenizer here."""
