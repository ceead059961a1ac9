"""What the deployed system rests on: users and modes, units, the image."""
