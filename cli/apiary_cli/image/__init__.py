"""`apiary image`: what a card must hold so that a Pi joins the fleet at its first start."""
