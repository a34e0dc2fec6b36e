"""Methods of the family language_rl."""
