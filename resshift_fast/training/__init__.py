"""Training: photos in, a checkpoint out. `data` cuts patches, `degradations` spoils them, `trainer` runs the loop."""
