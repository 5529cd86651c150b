"""The desktop's part: devices in the tray, the policy's questions, the settings of VMs."""
