"""Reports of a finished run: report.json, report.html, the model card and plots."""
