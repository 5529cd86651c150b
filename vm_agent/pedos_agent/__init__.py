"""The agent of each VM: finds devices, exports and imports them."""
