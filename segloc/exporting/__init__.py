"""Export weights for other libraries, and insert batch norm into norm-free weights."""
