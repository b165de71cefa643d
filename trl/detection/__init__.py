"""A classifier with a detector beside it: figures, the attacker who knows the detector, the guard."""
