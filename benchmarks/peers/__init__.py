"""Other ways to serve the same model over HTTP; each answers POST /predict {"text": …} with a label and scores."""
