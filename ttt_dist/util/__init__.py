"""What every other package stands on: errors and lines for people, files that are whole or not there, locks among machines."""
