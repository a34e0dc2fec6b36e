"""Pure functions on tensors, one topic a file. Losses return (total, count): the learner divides."""
