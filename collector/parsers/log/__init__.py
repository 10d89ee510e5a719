"""Lines of a log into records: wrappers, formats, alarms, keys and times."""
