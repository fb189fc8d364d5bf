"""What is too long for every day: load, leaks, kills, fuzzing and a clean installation."""
