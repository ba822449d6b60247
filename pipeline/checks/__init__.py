"""What the audit verifies and counts."""
