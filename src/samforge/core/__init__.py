"""Types every other package speaks: recipe, bundle, detections, session, errors."""
