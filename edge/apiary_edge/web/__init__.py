"""What the node's pages share: the site, the owner's sign-in and token."""
