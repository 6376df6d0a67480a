"""Labels for pictures: from folders, in a terminal, and on a page of its own process (`server.serve`)."""
