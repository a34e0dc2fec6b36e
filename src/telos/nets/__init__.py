"""Modules that two methods or more share. Initial weights come from a given generator, never from a global one."""
