"""What is read and heard of the kernel and udev, for all classes of devices."""
