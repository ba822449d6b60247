"""Reading and comparing runs: tables, charts, pictures, the HTML page."""
