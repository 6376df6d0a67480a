"""What `apiary doctor` checks."""
