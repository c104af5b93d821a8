"""samforge's sessions inside other people's pipelines; their code is imported, never copied."""
