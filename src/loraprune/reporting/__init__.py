"""What a run writes for readers: report.json, report.html, the model card and plots."""
