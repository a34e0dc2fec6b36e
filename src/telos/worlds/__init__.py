"""Embedded tasks: each with data, a gold measure and, where one exists, a scripted expert."""
