"""What stages store: written here, read here."""
