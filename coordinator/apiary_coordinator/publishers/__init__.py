"""Publishers: where a finished model goes. One file each; `base.py` says what one must offer."""
