"""Records (validated at the door), formats, relabelling and samplers."""
