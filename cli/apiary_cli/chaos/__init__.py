"""`apiary chaos`: a real federation on this machine, disturbed by a seeded schedule of faults."""
