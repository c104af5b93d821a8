"""What other tools' clients speak, each in one file: the same questions in other words."""
