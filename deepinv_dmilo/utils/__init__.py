"""What all floors use: private copies, noise from seeds, warnings, checks of settings."""
