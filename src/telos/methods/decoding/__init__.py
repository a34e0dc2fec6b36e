"""Methods of the family decoding."""
