"""The mathematics of the chain that operators and models share: schedule and noise field."""
