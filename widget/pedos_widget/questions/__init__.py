"""What dom0 asks its user, as a dialog."""
