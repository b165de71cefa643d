"""Running any module: device, modes, precision, several processes."""
