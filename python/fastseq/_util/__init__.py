"""Small tools that know nothing of sequences."""
