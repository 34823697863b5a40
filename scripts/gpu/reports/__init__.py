"""What is made of a run's rows: the summary there, files and tables here."""
