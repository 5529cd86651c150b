"""What a person is told when the menu is closed."""
