"""The columns of a coefficient row, and what a denoiser may predict: what operators and kernels know of a schedule."""

PREDICTION_TYPES = ("x0", "epsilon", "epsilon_scaled", "residual")

# In the order in which the operators read them; `schedule.Schedule.coefficients` has the formulas.
ETA, ONE_MINUS_ETA, KAPPA_SQRT_ETA, MEAN_X_T, MEAN_X0, NOISE_STD, INPUT_SCALE, NEXT_INPUT_SCALE = range(8)
NUM_COEFFICIENTS = 8


def check_prediction_type(where: str, prediction_type: str) -> None:
    """Raise ValueError, naming `where`, unless `prediction_type` is one of `PREDICTION_TYPES`."""
    if prediction_type not in PREDICTION_TYPES:
        expected = ", ".join(PREDICTION_TYPES)
        raise ValueError(f"{where}: prediction_type is {prediction_type!r}, expected one of {expected}")
