"""Running a module, whatever it is for: device, modes, precision, several processes."""
