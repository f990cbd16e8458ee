"""Loss, optimizer, precision and one backward step."""
