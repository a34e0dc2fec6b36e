"""Methods of the family preferences."""
