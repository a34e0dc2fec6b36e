"""What every language method needs; `tiny/` is the bundled model of the TinySent world, a transformers folder."""
