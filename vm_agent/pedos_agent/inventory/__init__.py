"""All devices of this VM as one list, and how it is told to dom0."""
