"""Conversations as their chat template writes them, and which parts of the text are learnt. No token ids here."""
