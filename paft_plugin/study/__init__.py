"""A study: the same comparison over several seeds, planned before anything is scored, and judged over all of them."""
