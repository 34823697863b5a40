"""What the measurements of slot attention say: tables and plots."""
