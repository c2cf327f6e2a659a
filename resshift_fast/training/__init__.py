"""Training from photos: `data` makes patches, `degradations` their low-quality versions, `trainer` runs the loop."""
