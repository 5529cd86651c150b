"""The hands in each VM: finds devices, exports and imports them."""
