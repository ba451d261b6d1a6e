"""What a run shows at its end: `results.json` for machines, `report.html` for people."""
