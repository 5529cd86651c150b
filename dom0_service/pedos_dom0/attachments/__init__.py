"""How attachments are made, ended, and found again after a restart."""
