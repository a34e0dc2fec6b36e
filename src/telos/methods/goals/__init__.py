"""Goals: policies that reach what they are shown, from play and demonstrations."""
