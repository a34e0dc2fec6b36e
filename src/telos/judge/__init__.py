"""Judging: statistics over seeds, and verdicts on what a claim states."""
