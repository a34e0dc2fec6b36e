"""The page: the catalogue, the claims and their results as HTML, served or written as static files (extra `site`)."""
