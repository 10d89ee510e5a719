"""The history in the database: which rows are kept, and for how long."""
