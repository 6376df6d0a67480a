"""`apiary demo`: a federation on one machine."""
