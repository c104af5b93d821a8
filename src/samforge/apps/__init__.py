"""Programs on top of samforge; they use its public API only."""
