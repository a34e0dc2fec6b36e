"""Claims: one file a paper, committed before it is measured."""
