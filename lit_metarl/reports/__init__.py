"""What is made of runs and of the trainer from outside: the results table and the benchmark."""
