"""One file a paper, one folder a family."""
