"""The sub-commands of `apiary`, one module each."""
