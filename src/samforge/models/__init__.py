"""Model families: checkpoint -> part."""
