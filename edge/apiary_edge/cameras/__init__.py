"""Where frames come from: one kind of camera a file. `base` says what each must offer."""
