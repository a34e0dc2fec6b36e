"""Decisions about people and money: logged bandits, delayed and one-sided feedback."""
