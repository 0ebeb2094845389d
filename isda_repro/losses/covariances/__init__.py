"""Statistics of the features of each class, and the quadratic forms of their covariances."""
