"""Methods of the family reward_models."""
