"""SAM 3's tracker in stateless parts: objects by points, boxes and masks, through a video."""
