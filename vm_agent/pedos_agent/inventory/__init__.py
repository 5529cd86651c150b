"""All devices of this VM as one list, and its report to dom0."""
