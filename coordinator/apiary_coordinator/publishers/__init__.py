"""Publishers: where a finished model goes. One file each; `base.py` defines what one must offer."""
