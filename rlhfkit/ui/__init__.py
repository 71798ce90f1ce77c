"""What people see: terminal, plots, pages."""
