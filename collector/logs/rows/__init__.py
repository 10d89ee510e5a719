"""Tables beside `logs` whose rows are made of the lines of logs."""
