"""What commands share: flags, tables, live views, logs, signals."""
